//! The pod template: restricted PodSecurity, probes, mounts. How weights come in is in `weights.rs`.

use std::collections::BTreeMap;

use candela_crds::{EngineName, EnvValue, Volume as VolumeSpec};
use candela_wire::{
    config::{HTTP_PORT, INTERNAL_PORT, SERVER_CONFIG_PATH},
    health::{self, ProbeTiming},
};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapKeySelector, ConfigMapVolumeSource, Container, ContainerPort,
    EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction, Lifecycle, LifecycleHandler,
    PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretKeySelector, SecretVolumeSource, SecurityContext,
    SleepAction, TCPSocketAction, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{config_map, scheduling, trust, weights};
use crate::{OwnedKind, Resolved, names};

/// Name of the container that serves.
pub(crate) const SERVER: &str = "server";
/// User and group of the pods: "nonroot" in common base images.
const USER: i64 = 65532;
/// Seconds between a foreign server's removal from the Service and its SIGTERM: it may not drain by itself.
const CUSTOM_PRE_STOP_SECS: i64 = 5;

pub(super) fn template(resolved: &Resolved) -> PodTemplateSpec {
    let additions = resolved.spec.pod_template.clone().unwrap_or_default();
    let mut labels = additions.labels;
    labels.extend(names::labels(&resolved.name));
    let annotations = additions.annotations;
    let mut pod = PodSpec {
        service_account_name: Some(names::child(OwnedKind::ServiceAccount, &resolved.name)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(i64::from(resolved.grace_secs)),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(runtime_default()),
            ..PodSecurityContext::default()
        }),
        init_containers: weights::fetch(resolved).map(|container| vec![container]),
        containers: vec![server(resolved)],
        volumes: Some(volumes(resolved)),
        ..PodSpec::default()
    };
    scheduling::place(resolved, &mut pod);
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(pod),
    }
}

fn server(resolved: &Resolved) -> Container {
    let custom = resolved.engine == EngineName::Custom;
    let port = |name: &str, number: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let mut ports = vec![port("http", HTTP_PORT)];
    let mut args = resolved.image_args.clone();
    if !custom {
        ports.push(port("internal", INTERNAL_PORT));
        let listen = format!("0.0.0.0:{HTTP_PORT}");
        let internal = format!("0.0.0.0:{INTERNAL_PORT}");
        let ours =
            ["serve", "--config", SERVER_CONFIG_PATH, "--listen", &listen, "--internal-listen", &internal];
        args = ours.iter().map(|&arg| arg.to_owned()).chain(args).collect();
    }
    Container {
        name: SERVER.to_owned(),
        image: Some(resolved.image.clone()),
        args: (!args.is_empty()).then_some(args),
        env: custom.then(|| custom_env(resolved)),
        ports: Some(ports),
        resources: Some(resources(resolved, true)),
        startup_probe: Some(startup_probe(resolved)),
        readiness_probe: Some(readiness_probe(custom)),
        liveness_probe: Some(liveness_probe(custom)),
        lifecycle: (custom && i64::from(resolved.grace_secs) > 2 * CUSTOM_PRE_STOP_SECS).then(|| Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: CUSTOM_PRE_STOP_SECS }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        security_context: Some(restricted()),
        // Our server writes why it ended; of a foreign one the last lines of its log have to do.
        termination_message_policy: Some(if custom { "FallbackToLogsOnError" } else { "File" }.to_owned()),
        volume_mounts: Some(server_mounts(resolved)),
        ..Container::default()
    }
}

/// Our server's `/startupz` passes while its load moves and fails when that stalls, so a load is never killed for being
/// slow; the server also ends by itself then, with `StartupStalled`. A foreign server has the progress deadline.
fn startup_probe(resolved: &Resolved) -> Probe {
    Probe {
        http_get: Some(get(resolved.engine == EngineName::Custom, "/startupz")),
        period_seconds: Some(1),
        timeout_seconds: Some(3),
        failure_threshold: Some(resolved.progress_deadline_secs),
        success_threshold: Some(1),
        ..Probe::default()
    }
}

fn readiness_probe(custom: bool) -> Probe {
    let foreign = ProbeTiming { period_secs: 2, timeout_secs: 3, failures: 3 };
    Probe {
        http_get: Some(get(custom, "/readyz")),
        ..timed(if custom { foreign } else { health::READINESS })
    }
}

/// A foreign server is only known to listen: an answer to a request may wait behind others' requests. Ours says itself
/// that it is stuck; what is stuck has nothing to drain, so it is not given the time for that.
fn liveness_probe(custom: bool) -> Probe {
    if custom {
        let port = IntOrString::String("http".to_owned());
        return Probe {
            tcp_socket: Some(TCPSocketAction { port, host: None }),
            ..timed(ProbeTiming { period_secs: 10, timeout_secs: 5, failures: 6 })
        };
    }
    Probe {
        http_get: Some(get(false, "/livez")),
        termination_grace_period_seconds: Some(health::LIVENESS_GRACE_SECS.into()),
        ..timed(health::LIVENESS)
    }
}

fn timed(timing: ProbeTiming) -> Probe {
    let number = |number: u32| i32::try_from(number).ok();
    Probe {
        period_seconds: number(timing.period_secs),
        timeout_seconds: number(timing.timeout_secs),
        failure_threshold: number(timing.failures),
        success_threshold: Some(1),
        ..Probe::default()
    }
}

fn get(custom: bool, path: &str) -> HTTPGetAction {
    let (path, port) = if custom { ("/v1/models", "http") } else { (path, "internal") };
    HTTPGetAction {
        path: Some(path.to_owned()),
        port: IntOrString::String(port.to_owned()),
        scheme: Some("HTTP".to_owned()),
        ..HTTPGetAction::default()
    }
}

fn custom_env(resolved: &Resolved) -> Vec<EnvVar> {
    let text =
        |name: &str, value: String| EnvVar { name: name.to_owned(), value: Some(value), value_from: None };
    let mut env =
        vec![text("PORT", HTTP_PORT.to_string()), text("MODEL_NAME", resolved.model.served_name.clone())];
    env.extend(weights::model_path(&resolved.model).map(|path| text("MODEL_PATH", path)));
    let wanted = resolved.spec.engine.as_ref().map(|engine| engine.env.clone()).unwrap_or_default();
    // The root is read-only; caches that go to the home folder would fail otherwise.
    if !wanted.iter().any(|var| var.name == "HOME") {
        env.push(text("HOME", "/tmp".to_owned()));
    }
    env.extend(wanted.into_iter().map(|var| EnvVar {
        name: var.name,
        // Stored without it: an empty value would look different for ever.
        value: var.value.filter(|value| !value.is_empty()),
        value_from: var.value_from.map(|EnvValue { secret_key_ref, config_map_key_ref }| EnvVarSource {
            secret_key_ref: secret_key_ref.map(|key| SecretKeySelector {
                name: key.name,
                key: key.key,
                optional: None,
            }),
            config_map_key_ref: config_map_key_ref.map(|key| ConfigMapKeySelector {
                name: key.name,
                key: key.key,
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
    }));
    env
}

pub(super) fn resources(resolved: &Resolved, with_accelerator: bool) -> ResourceRequirements {
    let wanted = resolved.spec.resources.clone().unwrap_or_default();
    let quantities = |amounts: BTreeMap<String, candela_crds::Quantity>| {
        let mut amounts: BTreeMap<String, Quantity> =
            amounts.into_iter().map(|(name, amount)| (name, Quantity(amount.as_str().to_owned()))).collect();
        if let (true, Some((name, count))) = (with_accelerator, &resolved.accelerator) {
            amounts.insert(name.clone(), Quantity(count.to_string()));
        }
        (!amounts.is_empty()).then_some(amounts)
    };
    ResourceRequirements {
        requests: quantities(wanted.requests),
        limits: quantities(wanted.limits),
        ..ResourceRequirements::default()
    }
}

fn server_mounts(resolved: &Resolved) -> Vec<VolumeMount> {
    let mut mounts = vec![mount("candela-tmp", "/tmp", false)];
    if resolved.engine == EngineName::Candle {
        mounts.push(mount(config_map::VOLUME, "/etc/candela", true));
    }
    mounts.extend(trust::mounts(resolved));
    mounts.extend(weights::mounts(resolved));
    let additions = resolved.spec.pod_template.iter().flat_map(|template| &template.volume_mounts);
    mounts.extend(additions.map(|wanted| VolumeMount {
        name: wanted.name.clone(),
        mount_path: wanted.mount_path.clone(),
        sub_path: wanted.sub_path.clone(),
        // The API server leaves `false` out.
        read_only: wanted.read_only.filter(|read_only| *read_only),
        ..VolumeMount::default()
    }));
    mounts
}

fn volumes(resolved: &Resolved) -> Vec<Volume> {
    let named = |name: &str| Volume { name: name.to_owned(), ..Volume::default() };
    let mut volumes =
        vec![Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..named("candela-tmp") }];
    if let Some(name) = config_map::name(resolved) {
        volumes.push(Volume {
            config_map: Some(ConfigMapVolumeSource { name, ..ConfigMapVolumeSource::default() }),
            ..named(config_map::VOLUME)
        });
    }
    volumes.extend(trust::volume(resolved));
    volumes.extend(weights::volumes(resolved));
    volumes
        .extend(resolved.spec.pod_template.iter().flat_map(|template| &template.volumes).map(extra_volume));
    volumes
}

fn extra_volume(wanted: &VolumeSpec) -> Volume {
    Volume {
        name: wanted.name.clone(),
        config_map: wanted.config_map.as_ref().map(|source| ConfigMapVolumeSource {
            name: source.name.clone(),
            ..ConfigMapVolumeSource::default()
        }),
        secret: wanted.secret.as_ref().map(|source| SecretVolumeSource {
            secret_name: Some(source.secret_name.clone()),
            ..SecretVolumeSource::default()
        }),
        persistent_volume_claim: wanted.persistent_volume_claim.as_ref().map(|source| {
            PersistentVolumeClaimVolumeSource {
                claim_name: source.claim_name.clone(),
                read_only: source.read_only.filter(|read_only| *read_only),
            }
        }),
        empty_dir: wanted.empty_dir.as_ref().map(|source| EmptyDirVolumeSource {
            medium: source.medium.clone(),
            size_limit: source.size_limit.as_ref().map(|limit| Quantity(limit.as_str().to_owned())),
        }),
        ..Volume::default()
    }
}

pub(super) fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

pub(super) fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        seccomp_profile: Some(runtime_default()),
        ..SecurityContext::default()
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}
