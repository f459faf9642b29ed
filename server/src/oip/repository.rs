//! The models of this process as a repository, for routes: which there are, and loading them.

use candela_wire::openai::InvalidField;

use crate::{
    api::{ApiError, request_limit},
    app::App,
    registry::Indexed,
};

/// All models; with `ready` those that answer.
pub(crate) async fn index(app: &App, ready: bool) -> Vec<Indexed> {
    let models = app.models.index(app.lifecycle.stage()).await;
    models.into_iter().filter(|model| !ready || model.state == "READY").collect()
}

/// Returns when it is ready.
pub(crate) async fn load(app: &App, name: &str) -> Result<(), ApiError> {
    app.models.load(name, request_limit(app)).await
}

/// Triton's clients may send a configuration and files: here, both lie in the repository.
pub(crate) fn check_load(parameters: &[String]) -> Result<(), ApiError> {
    match parameters.first() {
        None => Ok(()),
        Some(name) => {
            let name: String = name.chars().take(100).collect();
            let what = format!(
                "parameter `{name}`: a model is loaded as it lies in the repository; write `candela.json` there"
            );
            Err(ApiError::Invalid(InvalidField::unsupported(name, what)))
        }
    }
}
