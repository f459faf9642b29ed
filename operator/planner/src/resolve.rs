//! `resolve`: everything the spec says, validated, dereferenced and made effective, or why that cannot be.

use candela_crds::{
    ConditionType, Device as DeviceSpec, EngineName, LlmDeployment, LlmDeploymentSpec, Reason,
};

use crate::{
    Blocked, Device, Observed, OwnedKind, Settings, children,
    models::{self, ResolvedModel},
    names,
    observed::is_ours,
};

/// A spec with nothing left to look up and no default left to apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// The spec as written, for what is passed on unchanged.
    pub spec: LlmDeploymentSpec,
    pub engine: EngineName,
    /// Image of the server's container.
    pub image: String,
    /// Arguments from the operator's configuration.
    pub image_args: Vec<String>,
    /// Image that runs `candela-server fetch`, when the weights must be fetched.
    pub fetch_image: Option<String>,
    /// `spec.model`.
    pub model: ResolvedModel,
    /// `spec.additionalModels`, in the order of their served names.
    pub additional: Vec<ResolvedModel>,
    /// Extended resource and count, when there is an accelerator.
    pub accelerator: Option<(String, u32)>,
    /// 0 when suspended.
    pub replicas: i32,
    /// What a replica would need and is not there; only where none is wanted, else the spec is blocked.
    pub missing: Option<Blocked>,
    pub progress_deadline_secs: i32,
    pub grace_secs: i32,
    /// Namespace of the operator.
    pub operator_namespace: String,
    /// The hub that `hf://` means, where it is not the public one.
    pub hub_endpoint: Option<String>,
}

impl Resolved {
    /// Every model, that of `spec.model` first.
    pub fn models(&self) -> impl Iterator<Item = &ResolvedModel> {
        std::iter::once(&self.model).chain(&self.additional)
    }
}

/// Time that a replica may take to start when the spec does not say.
const PROGRESS_DEADLINE_SECS: i32 = 30 * 60;
/// Time that a replica gets to finish its requests when the spec does not say.
const GRACE_SECS: i32 = 60;
/// What a stopped replica needs beyond the longest request.
const GRACE_MARGIN_SECS: i32 = 10;

/// Validates and dereferences. `Err` is a value that becomes a condition, never a reason to try again.
///
/// Where no replica is wanted, nothing that only a replica needs can block: stopping must always be possible.
pub fn resolve(cr: &LlmDeployment, seen: &Observed, settings: &Settings) -> Result<Resolved, Blocked> {
    let resolved = resolve_spec(cr, seen, settings)?;
    match foreign_child(&resolved, seen) {
        Some(blocked) => Err(blocked),
        None => Ok(resolved),
    }
}

/// The replicas that the spec wants: 0 when suspended.
pub(crate) fn wanted_replicas(spec: &LlmDeploymentSpec) -> i32 {
    if spec.suspend == Some(true) { 0 } else { spec.replicas }
}

/// All of [`resolve`] but for objects of others that bear a child's name.
pub(crate) fn resolve_spec(
    cr: &LlmDeployment,
    seen: &Observed,
    settings: &Settings,
) -> Result<Resolved, Blocked> {
    let metadata = &cr.metadata;
    let (Some(name), Some(namespace), Some(uid)) = (&metadata.name, &metadata.namespace, &metadata.uid)
    else {
        return Err(invalid("the object has no name, namespace or uid: it must come from an API server"));
    };
    if !names::is_valid(name) {
        return Err(invalid(format!(
            "`metadata.name` also names a Service: `{name}` must be at most 50 lower-case letters, digits and '-', starting with a letter"
        )));
    }
    let spec = &cr.spec;
    let engine = spec.engine_name();
    let (model, additional) = models::models(name, spec, settings)?;
    check_mounts(spec)?;
    let replicas = wanted_replicas(spec);
    let all = || std::iter::once(&model).chain(&additional);
    let mut missing = all().find_map(|model| model.check(namespace, seen).err());
    if replicas > 0
        && let Some(blocked) = missing
    {
        return Err(blocked);
    }
    let accelerator = spec
        .accelerator
        .as_ref()
        .map(|wanted| (wanted.device.resource_name().to_owned(), wanted.device.count.unsigned_abs()));
    // With no replica, an image that is no longer configured stays what it was: nothing starts from it.
    let stopped = (replicas == 0).then(|| Kept::of(cr, seen)).flatten();
    let (image, image_args) = match (image(spec, settings), &stopped) {
        (Err(blocked), Some(kept)) => {
            missing.get_or_insert(blocked);
            (kept.image.clone(), kept.args.clone())
        }
        (found, _) => found?,
    };
    let fetch_image = match (all().any(ResolvedModel::is_fetched), engine) {
        (true, EngineName::Candle) => Some(image.clone()),
        (true, EngineName::Custom) => match (candle_image(Device::Cpu, settings), &stopped) {
            (Err(blocked), Some(kept)) => {
                missing.get_or_insert(blocked);
                Some(kept.fetch_image.clone().unwrap_or_else(|| image.clone()))
            }
            (found, _) => Some(found?.0),
        },
        (false, _) => None,
    };
    let uses_hub = all().any(ResolvedModel::uses_hub);
    let request_secs = spec
        .routing
        .as_ref()
        .and_then(|routing| routing.timeouts.as_ref()?.request.as_ref())
        .map_or(0, |request| request.as_secs_ceil().saturating_add(GRACE_MARGIN_SECS));
    Ok(Resolved {
        name: name.clone(),
        namespace: namespace.clone(),
        uid: uid.clone(),
        spec: spec.clone(),
        engine,
        image,
        image_args,
        fetch_image,
        model,
        additional,
        accelerator,
        replicas,
        missing,
        progress_deadline_secs: spec
            .rollout
            .as_ref()
            .and_then(|rollout| rollout.progress_deadline.as_ref())
            .map_or(PROGRESS_DEADLINE_SECS, |deadline| deadline.as_secs_ceil().max(10)),
        grace_secs: spec
            .pod_template
            .as_ref()
            .and_then(|template| template.termination_grace_period.as_ref())
            .map_or_else(|| GRACE_SECS.max(request_secs), |grace| grace.as_secs_ceil().max(1)),
        operator_namespace: settings.operator_namespace.clone(),
        hub_endpoint: settings.hub_endpoint.clone().filter(|_| uses_hub),
    })
}

/// What the live Deployment runs, for a resource that is being stopped.
struct Kept {
    image: String,
    args: Vec<String>,
    fetch_image: Option<String>,
}

impl Kept {
    fn of(cr: &LlmDeployment, seen: &Observed) -> Option<Self> {
        let name = names::child(OwnedKind::Deployment, cr.metadata.name.as_deref()?);
        let live = seen.child(OwnedKind::Deployment, &name)?;
        let pod = &live["spec"]["template"]["spec"];
        let image = |list: &str, wanted: &str| {
            let found = pod[list].as_array()?.iter().find(|container| container["name"] == wanted)?;
            found["image"].as_str().map(str::to_owned)
        };
        Some(Self {
            image: image("containers", children::SERVER)?,
            args: cr.spec.engine.iter().flat_map(|engine| engine.args.clone()).collect(),
            fetch_image: image("initContainers", children::FETCH),
        })
    }
}

pub(crate) fn invalid(message: impl Into<String>) -> Blocked {
    Blocked { condition: ConditionType::Validated, reason: Reason::InvalidSpec, message: message.into() }
}

/// A live object of a child's name that is not ours is somebody else's: never adopted.
fn foreign_child(resolved: &Resolved, seen: &Observed) -> Option<Blocked> {
    children::desired(resolved, seen).children.into_iter().find_map(|child| {
        let (kind, name) = (child.kind, child.name());
        let foreign =
            seen.child(kind, name).is_some_and(|live| !is_ours(live, &resolved.name, &resolved.uid));
        foreign.then(|| Blocked {
            condition: ConditionType::Validated,
            reason: Reason::NameConflict,
            message: format!(
                "{kind} `{name}` exists and is not owned by this LlmDeployment: delete or rename it, or give this resource another name; it was left alone"
            ),
        })
    })
}

/// Folders of the server's container that are Candela's or the kernel's. `/var/run` is a link to `/run` in most images.
const KEPT_FOLDERS: &[&str] =
    &["/etc/candela", "/models", "/pvc", "/tmp", "/var/run/candela", "/run/candela", "/dev", "/proc", "/sys"];

/// CEL has checked the paths already; a mount that covers the configuration would run something else than was asked for.
fn check_mounts(spec: &LlmDeploymentSpec) -> Result<(), Blocked> {
    for mount in spec.pod_template.iter().flat_map(|template| &template.volume_mounts) {
        let path = mount.mount_path.as_str();
        let mut parts = path.split('/');
        let plain = parts.next() == Some("") && parts.all(|part| !matches!(part, "" | "." | ".."));
        let within = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if !plain || KEPT_FOLDERS.iter().any(|kept| within(path, kept) || within(kept, path)) {
            return Err(invalid(format!(
                "`spec.podTemplate.volumeMounts` has the mountPath `{path}`: write a plain path such as /data, outside of {}",
                KEPT_FOLDERS.join(", ")
            )));
        }
    }
    Ok(())
}

fn image(spec: &LlmDeploymentSpec, settings: &Settings) -> Result<(String, Vec<String>), Blocked> {
    if let Some(engine) = &spec.engine
        && engine.name == EngineName::Custom
    {
        return match &engine.image {
            Some(image) => Ok((image.clone(), engine.args.clone())),
            None => Err(invalid("`spec.engine.image` is required with engine Custom")),
        };
    }
    candle_image(device(spec.accelerator.as_ref().map(|wanted| &wanted.device))?, settings)
}

fn device(wanted: Option<&DeviceSpec>) -> Result<Device, Blocked> {
    match wanted.map(DeviceSpec::resource_name) {
        None => Ok(Device::Cpu),
        Some(name) if name.starts_with("nvidia.com/") => Ok(Device::Nvidia),
        Some(name) => Err(Blocked {
            condition: ConditionType::Validated,
            reason: Reason::ImageNotConfigured,
            message: format!(
                "engine Candle runs on CPU and on nvidia.com resources, not on `{name}`: change `spec.accelerator.device.resourceName`, or use engine Custom with an image for it"
            ),
        }),
    }
}

fn candle_image(device: Device, settings: &Settings) -> Result<(String, Vec<String>), Blocked> {
    settings
        .images
        .iter()
        .find(|rule| rule.engine == EngineName::Candle && rule.device == device)
        .map(|rule| (rule.image.clone(), rule.args.clone()))
        .ok_or_else(|| Blocked {
            condition: ConditionType::Validated,
            reason: Reason::ImageNotConfigured,
            message: format!(
                "the operator's configuration names no image for engine Candle on device {}: add one under `images`, or change `spec.accelerator`",
                device.as_str()
            ),
        })
}
