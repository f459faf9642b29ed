//! How weights come into the pods: the init step that fetches them all, and what the server mounts of them.

use std::collections::BTreeSet;

use candela_wire::config::{
    ADDITIONAL_CREDENTIALS_DIR, CREDENTIALS_DIR, MODELS_DIR, PVC_DIR, SERVER_CONFIG_PATH, folder_name,
};
use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvVar, KeyToPath, PersistentVolumeClaimVolumeSource,
    ProjectedVolumeSource, SecretProjection, SecretVolumeSource, Volume, VolumeMount, VolumeProjection,
};

use super::{
    config_map,
    pod::{mount, resources, restricted},
};
use crate::{
    Resolved,
    models::{ResolvedModel, Source},
};

/// Name of the init container that fetches weights.
pub(crate) const FETCH: &str = "fetch";
const MODELS: &str = "candela-models";
const CREDENTIALS: &str = "candela-credentials";
const ADDITIONAL_CREDENTIALS: &str = "candela-additional-credentials";
const CLAIM: &str = "candela-pvc";
/// Who may read a token: the pods' group.
const TOKEN_MODE: i32 = 0o440;

/// The init step: the weights of every model into `/models`, before anything serves.
pub(super) fn fetch(resolved: &Resolved) -> Option<Container> {
    let image = resolved.fetch_image.clone()?;
    let mut mounts = vec![
        mount(config_map::VOLUME, "/etc/candela", true),
        mount(MODELS, MODELS_DIR, false),
        mount("candela-tmp", "/tmp", false),
    ];
    // Only the step that talks to the source sees the credentials.
    if token_file(&resolved.model, false).is_some() {
        mounts.push(mount(CREDENTIALS, CREDENTIALS_DIR, true));
    }
    if resolved.additional.iter().any(|model| token_file(model, true).is_some()) {
        mounts.push(mount(ADDITIONAL_CREDENTIALS, ADDITIONAL_CREDENTIALS_DIR, true));
    }
    Some(Container {
        name: FETCH.to_owned(),
        image: Some(image),
        args: Some(["fetch", "--config", SERVER_CONFIG_PATH, "--to", MODELS_DIR].map(str::to_owned).to_vec()),
        env: resolved
            .hub_endpoint
            .clone()
            .map(|hub| vec![EnvVar { name: "HF_ENDPOINT".to_owned(), value: Some(hub), value_from: None }]),
        resources: Some(resources(resolved, false)),
        security_context: Some(restricted()),
        termination_message_policy: Some("File".to_owned()),
        volume_mounts: Some(mounts),
        ..Container::default()
    })
}

/// File with the token of a model's source, in the init step; `None` if none is sent.
pub(super) fn token_file(model: &ResolvedModel, additional: bool) -> Option<String> {
    let sent = model.is_fetched() && model.spec.credentials_ref.is_some();
    sent.then(|| {
        if additional {
            format!("{ADDITIONAL_CREDENTIALS_DIR}/{}", token_path(model))
        } else {
            format!("{CREDENTIALS_DIR}/token")
        }
    })
}

/// Below the folder that all tokens of additional models share.
fn token_path(model: &ResolvedModel) -> String {
    format!("{}/token", folder_name(&model.served_name))
}

/// Where a foreign server finds the weights; `None` if its image brings them.
pub(super) fn model_path(model: &ResolvedModel) -> Option<String> {
    match &model.source {
        Source::Image => None,
        Source::Fetched { .. } => Some(fetched_path(model)),
        Source::Claim { name, path } => {
            Some(format!("{PVC_DIR}/{name}/{path}").trim_end_matches('/').to_owned())
        }
    }
}

/// What the init step leaves: a folder, or in it the one file that the URI names.
fn fetched_path(model: &ResolvedModel) -> String {
    let folder = format!("{MODELS_DIR}/{}", folder_name(&model.served_name));
    let uri = model.spec.uri.as_deref().unwrap_or_default();
    let file = match uri.strip_prefix("hf://") {
        // ORG/NAME/PATH
        Some(rest) => rest.splitn(3, '/').nth(2),
        None => uri.split(['?', '#']).next().and_then(|url| url.rsplit('/').next()),
    };
    match file.filter(|file| file.to_ascii_lowercase().ends_with(".gguf")) {
        // The init step gives a name that needs decoding a plain one.
        Some(file) if file.contains('%') => format!("{folder}/model.gguf"),
        Some(file) => format!("{folder}/{file}"),
        None => folder,
    }
}

/// What the server mounts of the weights.
pub(super) fn mounts(resolved: &Resolved) -> Vec<VolumeMount> {
    let fetched = resolved.models().any(ResolvedModel::is_fetched).then(|| mount(MODELS, MODELS_DIR, true));
    let claims = claims(resolved)
        .into_iter()
        .map(|(volume, claim)| mount(&volume, &format!("{PVC_DIR}/{claim}"), true));
    fetched.into_iter().chain(claims).collect()
}

/// The volumes of [`mounts`] and of the init step.
pub(super) fn volumes(resolved: &Resolved) -> Vec<Volume> {
    let named = |name: &str| Volume { name: name.to_owned(), ..Volume::default() };
    let mut volumes = Vec::new();
    if resolved.models().any(ResolvedModel::is_fetched) {
        volumes.push(Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..named(MODELS) });
    }
    if let (Some(_), Some(credentials)) =
        (token_file(&resolved.model, false), &resolved.model.spec.credentials_ref)
    {
        volumes.push(Volume {
            secret: Some(SecretVolumeSource {
                secret_name: Some(credentials.name.clone()),
                default_mode: Some(TOKEN_MODE),
                // A key that is missing would keep the pod from starting, with words that name neither the field nor
                // the way out: the init step starts without it and says both.
                optional: Some(true),
                items: Some(vec![KeyToPath {
                    key: credentials.key.clone(),
                    path: "token".to_owned(),
                    mode: None,
                }]),
            }),
            ..named(CREDENTIALS)
        });
    }
    let tokens: Vec<VolumeProjection> = resolved.additional.iter().filter_map(projected_token).collect();
    if !tokens.is_empty() {
        volumes.push(Volume {
            projected: Some(ProjectedVolumeSource { default_mode: Some(TOKEN_MODE), sources: Some(tokens) }),
            ..named(ADDITIONAL_CREDENTIALS)
        });
    }
    volumes.extend(claims(resolved).into_iter().map(|(volume, claim)| Volume {
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim,
            read_only: Some(true),
        }),
        ..named(&volume)
    }));
    volumes
}

fn projected_token(model: &ResolvedModel) -> Option<VolumeProjection> {
    token_file(model, true)?;
    let credentials = model.spec.credentials_ref.as_ref()?;
    Some(VolumeProjection {
        secret: Some(SecretProjection {
            name: credentials.name.clone(),
            optional: Some(true),
            items: Some(vec![KeyToPath {
                key: credentials.key.clone(),
                path: token_path(model),
                mode: None,
            }]),
        }),
        ..VolumeProjection::default()
    })
}

/// Volume and claim of each claim that a model lies on, once however many models share it; that of `spec.model` keeps
/// its name whatever is added.
fn claims(resolved: &Resolved) -> Vec<(String, String)> {
    let claim = |model: &ResolvedModel| match &model.source {
        Source::Claim { name, .. } => Some(name.clone()),
        Source::Image | Source::Fetched { .. } => None,
    };
    let main = claim(&resolved.model);
    let others: BTreeSet<String> =
        resolved.additional.iter().filter_map(claim).filter(|name| Some(name) != main.as_ref()).collect();
    let numbered = others.into_iter().enumerate().map(|(at, name)| (format!("{CLAIM}-{}", at + 1), name));
    main.map(|name| (CLAIM.to_owned(), name)).into_iter().chain(numbered).collect()
}
