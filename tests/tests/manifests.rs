//! What lies in `manifests/` is what our code reads. That a real API server takes it is in `install.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use candela_crds::LlmDeployment;
use candela_operator::OperatorConfig;
use serde::Deserialize;
use serde_json::Value;

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

/// Every document of every YAML file in a folder, with the file's name.
fn documents(folder: &str) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for item in fs::read_dir(manifests().join(folder))? {
        let path = item?.path();
        if path.extension().is_none_or(|e| e != "yaml") || path.ends_with("kustomization.yaml") {
            continue;
        }
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        for document in serde_yaml::Deserializer::from_str(&fs::read_to_string(&path)?) {
            found.push((name.clone(), Value::deserialize(document).with_context(|| name.clone())?));
        }
    }
    Ok(found)
}

fn configuration(path: &str) -> Result<Value> {
    let text = fs::read_to_string(manifests().join(path))?;
    let config = OperatorConfig::parse(&text, path)?;
    Ok(serde_json::to_value(config)?)
}

/// Images of a configuration by device, with their arguments.
fn images(config: &Value) -> Vec<(String, Value)> {
    let images = config["images"].as_array().into_iter().flatten();
    images.map(|i| (i["device"].as_str().unwrap_or_default().to_owned(), i["args"].clone())).collect()
}

#[test]
fn the_operator_reads_the_configurations_that_ship() -> Result<()> {
    let default = configuration("operator/operator.yaml")?;
    assert_eq!(images(&default), [("Cpu".to_owned(), serde_json::json!([]))]);
    assert_eq!(default["networkPolicyEnforced"], "Unknown");

    // Only here may a server without CUDA be given accelerators.
    let test = configuration("overlays/test/operator.yaml")?;
    let expected = [
        ("Cpu".to_owned(), serde_json::json!([])),
        ("Nvidia".to_owned(), serde_json::json!(["--device", "cpu"])),
    ];
    assert_eq!(images(&test), expected);
    assert_eq!(test["networkPolicyEnforced"], "No");
    Ok(())
}

#[test]
fn the_reference_names_every_field_of_the_configuration() -> Result<()> {
    let page = fs::read_to_string(manifests().join("../docs/reference/operator-configuration.md"))?;
    let mut config = serde_json::to_value(OperatorConfig::default())?;
    config["images"] = configuration("operator/operator.yaml")?["images"].clone();
    for (field, value) in config.as_object().context("an object")? {
        let inner = value.as_object().map(|fields| (".", fields));
        let inner = inner.or_else(|| value[0].as_object().map(|fields| ("[].", fields)));
        match inner {
            None => assert!(page.contains(&format!("| `{field}` |")), "{field}"),
            Some((join, fields)) => {
                for name in fields.keys() {
                    assert!(page.contains(&format!("| `{field}{join}{name}` |")), "{field}{join}{name}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn every_sample_reads_back_as_it_was_written() -> Result<()> {
    let samples: Vec<_> = documents("samples")?
        .into_iter()
        .filter(|(_, document)| document["kind"] == "LlmDeployment")
        .collect();
    assert!(samples.len() >= 11, "{} samples", samples.len());
    for (file, written) in samples {
        let typed: LlmDeployment = serde_json::from_value(written.clone()).with_context(|| file.clone())?;
        let back = serde_json::to_value(&typed)?;
        assert_eq!(back["spec"], written["spec"], "{file}");
    }
    Ok(())
}

#[test]
fn every_pod_that_ships_meets_the_restricted_profile_by_itself() -> Result<()> {
    let pods: Vec<_> =
        documents("operator")?.into_iter().filter(|(_, d)| d["kind"] == "Deployment").collect();
    assert_eq!(pods.len(), 1);
    for (file, document) in pods {
        let spec = &document["spec"]["template"]["spec"];
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{file}");
        assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{file}");
        for container in spec["containers"].as_array().context("containers")? {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{file}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{file}");
            assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]), "{file}");
        }
    }
    Ok(())
}
