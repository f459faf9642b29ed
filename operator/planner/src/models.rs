//! The models of a spec: their names, where their weights come from, and whether what they need is there.

use std::collections::BTreeSet;

use candela_crds::{
    ConditionType, EngineName, HOSTS_ANNOTATION, LlmDeploymentSpec, Model, Reason, USABLE_LABEL,
};

use crate::{Blocked, Observed, SecretFacts, Settings, resolve::invalid};

/// One model, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedModel {
    /// Where the spec speaks of it, as messages write it: `spec.model`, `spec.additionalModels[NAME]`.
    pub field: String,
    pub served_name: String,
    /// As written.
    pub spec: Model,
    pub source: Source,
}

/// Where the weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Part of the image: `builtin://demo`, or a custom image without a URI.
    Image,
    /// Fetched by the init step from this host and port.
    Fetched { host: String, port: u16 },
    /// On a PersistentVolumeClaim; `path` has no leading slash.
    Claim { name: String, path: String },
}

/// The hub that `hf://` means unless the operator's configuration names another.
const HUB: &str = "https://huggingface.co";

/// `spec.model`, and the additional ones in the order of their names: the order in the spec means nothing, so it must
/// not roll the pods.
pub(crate) fn models(
    name: &str,
    spec: &LlmDeploymentSpec,
    settings: &Settings,
) -> Result<(ResolvedModel, Vec<ResolvedModel>), Blocked> {
    let engine = spec.engine_name();
    let served_name = spec.model.served_name.clone().unwrap_or_else(|| name.to_owned());
    let main = resolved("spec.model".to_owned(), served_name, &spec.model, engine, settings)?;
    if engine == EngineName::Custom && !spec.additional_models.is_empty() {
        return Err(invalid(
            "`spec.additionalModels` are loaded by Candela's own server only: give each model a resource of its own with engine Custom",
        ));
    }
    let mut names = BTreeSet::from([main.served_name.clone()]);
    let mut additional = Vec::new();
    for model in &spec.additional_models {
        let Some(served_name) = model.served_name.clone() else {
            return Err(invalid("each of `spec.additionalModels` needs a servedName"));
        };
        if !names.insert(served_name.clone()) {
            return Err(invalid(format!(
                "`spec.additionalModels` has the servedName `{served_name}`, which another model of this resource has: give one of them another name"
            )));
        }
        let field = format!("spec.additionalModels[{served_name}]");
        additional.push(resolved(field, served_name, model, engine, settings)?);
    }
    additional.sort_by(|a, b| a.served_name.cmp(&b.served_name));
    Ok((main, additional))
}

fn resolved(
    field: String,
    served_name: String,
    spec: &Model,
    engine: EngineName,
    settings: &Settings,
) -> Result<ResolvedModel, Blocked> {
    let source = source(&field, spec, engine, settings)?;
    Ok(ResolvedModel { field, served_name, spec: spec.clone(), source })
}

impl ResolvedModel {
    pub(crate) fn uses_hub(&self) -> bool {
        self.spec.uri.as_ref().is_some_and(|uri| uri.starts_with("hf://"))
    }

    pub(crate) fn is_fetched(&self) -> bool {
        matches!(self.source, Source::Fetched { .. })
    }

    /// What must exist for a replica to start.
    pub(crate) fn check(&self, namespace: &str, seen: &Observed) -> Result<(), Blocked> {
        self.check_credentials(seen)?;
        self.check_claim(namespace, seen)
    }

    fn check_claim(&self, namespace: &str, seen: &Observed) -> Result<(), Blocked> {
        match &self.source {
            Source::Claim { name, .. } if !seen.claims.contains(name) => Err(Blocked {
                condition: ConditionType::Validated,
                reason: Reason::ClaimNotFound,
                message: format!(
                    "PersistentVolumeClaim `{name}` of `{}.uri` does not exist in namespace `{namespace}`: create it, or correct the name",
                    self.field
                ),
            }),
            _ => Ok(()),
        }
    }

    fn check_credentials(&self, seen: &Observed) -> Result<(), Blocked> {
        let Some(wanted) = &self.spec.credentials_ref else { return Ok(()) };
        let Source::Fetched { host, port } = &self.source else { return Ok(()) };
        // Of the hub, the operator's configuration says how it is reached. Elsewhere another port is another server,
        // and without TLS anybody on the way reads the token: both must be allowed by name.
        let plain = self.spec.uri.as_ref().is_some_and(|uri| uri.starts_with("http://"));
        let place = match (self.uses_hub(), plain, port) {
            (true, ..) => host.clone(),
            (false, true, 80) => format!("http://{host}"),
            (false, true, port) => format!("http://{host}:{port}"),
            (false, false, 443) => host.clone(),
            (false, false, port) => format!("{host}:{port}"),
        };
        let blocked =
            |reason, message: String| Err(Blocked { condition: ConditionType::Validated, reason, message });
        let name = &wanted.name;
        let Some(SecretFacts { labels, annotations }) = seen.secrets.get(name) else {
            return blocked(
                Reason::CredentialsNotFound,
                format!(
                    "Secret `{name}` of `{}.credentialsRef` does not exist: create it, or correct the name",
                    self.field
                ),
            );
        };
        if labels.get(USABLE_LABEL).map(String::as_str) != Some("true") {
            return blocked(
                Reason::CredentialsNotUsable,
                format!(
                    "Secret `{name}` may not be used by Candela: if it should be, run `kubectl label secret {name} {USABLE_LABEL}=true`"
                ),
            );
        }
        let allowed = annotations.get(HOSTS_ANNOTATION).map_or("", String::as_str);
        if !allowed.split(',').any(|entry| entry.trim().eq_ignore_ascii_case(&place)) {
            return blocked(
                Reason::CredentialsHostNotAllowed,
                format!(
                    "Secret `{name}` may not be sent to `{place}`: its annotation {HOSTS_ANNOTATION} lists `{allowed}`; if it should be, add `{place}` there, separated by a comma"
                ),
            );
        }
        Ok(())
    }
}

/// CEL has checked the URI already; here it is taken apart.
fn source(field: &str, model: &Model, engine: EngineName, settings: &Settings) -> Result<Source, Blocked> {
    let Some(uri) = &model.uri else {
        return match engine {
            EngineName::Custom => Ok(Source::Image),
            EngineName::Candle => Err(invalid(format!(
                "`{field}.uri` is required: write builtin://demo, hf://ORG/NAME, https://HOST/PATH or pvc://CLAIM/PATH"
            ))),
        };
    };
    let unusable = || {
        invalid(format!(
            "`{field}.uri` cannot be used: `{uri}` must be builtin://demo, hf://ORG/NAME, http(s)://HOST/PATH or pvc://CLAIM/PATH"
        ))
    };
    let (scheme, rest) = uri.split_once("://").ok_or_else(unusable)?;
    match scheme {
        "builtin" if rest == "demo" && engine == EngineName::Candle => Ok(Source::Image),
        "hf" if rest.split('/').filter(|part| !part.is_empty()).count() >= 2 => {
            let hub = settings.hub_endpoint.as_deref().unwrap_or(HUB);
            authority(hub).ok_or_else(|| {
                invalid(format!("`hubEndpoint` of the operator's configuration cannot be used: `{hub}` must be https://HOST or http://HOST:PORT"))
            })
        }
        "http" | "https" => authority(uri).ok_or_else(unusable),
        "pvc" => {
            let (claim, path) = rest.split_once('/').unwrap_or((rest, ""));
            if claim.is_empty() || path.split('/').any(|part| part == "..") {
                return Err(unusable());
            }
            Ok(Source::Claim { name: claim.to_owned(), path: path.trim_matches('/').to_owned() })
        }
        _ => Err(unusable()),
    }
}

/// Host and port of an `http(s)` address without credentials.
fn authority(address: &str) -> Option<Source> {
    let (scheme, rest) = address.split_once("://")?;
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let authority = rest.split('/').next()?;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, default_port),
    };
    let usable = !host.is_empty() && !host.contains('@') && port != 0;
    usable.then(|| Source::Fetched { host: host.to_owned(), port })
}
