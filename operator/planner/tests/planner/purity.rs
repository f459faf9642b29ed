//! The planner cannot reach a client, a clock or tokio: not by discipline, but because it does not depend on them.

use std::process::Command;

use serde_json::Value;

#[test]
fn the_planner_depends_on_no_client_clock_or_runtime() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let package = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|package| package["name"] == "candela-planner")
        .unwrap();
    let mut direct: Vec<&str> = package["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|dependency| dependency["kind"].is_null())
        .map(|dependency| dependency["name"].as_str().unwrap())
        .collect();
    direct.sort_unstable();
    let allowed =
        ["candela-crds", "candela-wire", "hex", "k8s-openapi", "serde", "serde_json", "sha2", "thiserror"];
    let strangers: Vec<_> = direct.iter().filter(|name| !allowed.contains(name)).collect();
    assert!(strangers.is_empty(), "new dependencies of the planner: {strangers:?}");
}

#[test]
fn nothing_below_the_planner_is_a_client_or_a_runtime() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--prefix", "none", "--edges", "normal", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.starts_with("candela-planner "), "{tree}");
    for stranger in ["tokio", "hyper", "kube-client", "kube-runtime", "reqwest", "tower"] {
        assert!(
            !tree.lines().any(|line| line.split(' ').next() == Some(stranger)),
            "{stranger} is below the planner"
        );
    }
}

#[test]
fn the_planner_never_asks_what_time_it_is() {
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    let mut n_files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            n_files += 1;
            let text = std::fs::read_to_string(&path).unwrap();
            for clock in [
                "Timestamp::now",
                "SystemTime",
                "Instant::now",
                "Zoned::now",
                "std::fs",
                "std::net",
                "std::env",
            ] {
                assert!(!text.contains(clock), "{} uses {clock}", path.display());
            }
        }
    }
    assert!(n_files > 10, "found {n_files} files only");
}
