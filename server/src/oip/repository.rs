//! The models of this process as a repository: which there are, and loading and unloading them.

use candela_wire::openai::InvalidField;

use super::contract::VERSION;
use crate::{api::ApiError, app::App, lifecycle::Stage};

/// One line of the index.
pub(crate) struct Indexed {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) state: &'static str,
    pub(crate) reason: String,
}

/// All models of the configuration; with `ready` those that answer.
pub(crate) fn index(app: &App, ready: bool) -> Vec<Indexed> {
    let going = app.lifecycle.stage() >= Stage::Draining;
    let of = |name: &String| {
        let (state, reason) = match app.models.named(name) {
            Some(_) if going => ("UNLOADING", "the server is shutting down"),
            Some(_) => ("READY", ""),
            None => ("LOADING", app.progress.phase().name()),
        };
        Indexed { name: name.clone(), version: VERSION.to_owned(), state, reason: reason.to_owned() }
    };
    let models = app.config.models.iter().map(|model| of(&model.served_name));
    models.filter(|model| !ready || model.state == "READY").collect()
}

/// Why `verb` is not done.
pub(crate) fn refused(app: &App, verb: &str, name: &str) -> ApiError {
    let name: String = name.chars().take(100).collect();
    let models = app.config.models.iter().map(|model| model.served_name.as_str()).collect::<Vec<_>>();
    let message = match models.contains(&name.as_str()) {
        true => format!(
            "cannot {verb} `{name}`: it is a model of this server's configuration, which is loaded from start to end"
        ),
        false => {
            return ApiError::NoSuchModel { asked: name, served: models.join("`, `") };
        }
    };
    ApiError::Invalid(InvalidField::unsupported("model_name", message))
}
