//! The models of this process as a repository, for routes: which there are, and loading them.

use candela_wire::openai::InvalidField;

use crate::{
    api::{ApiError, request_limit},
    app::App,
    registry::Indexed,
    trust::Caller,
};

/// All models; with `ready` those that answer.
pub(crate) async fn index(app: &App, ready: bool) -> Result<Vec<Indexed>, ApiError> {
    let models = app.models.index(app.lifecycle.stage()).await?;
    Ok(models.into_iter().filter(|model| !ready || model.state == "READY").collect())
}

/// Where callers can be told apart, those that anybody may send decide nothing for all others.
fn check_caller(app: &App, caller: &Caller) -> Result<(), ApiError> {
    match app.trust.knows_a_gateway() && !caller.trusted {
        true => Err(ApiError::GatewayOnly { what: "load and unload models" }),
        false => Ok(()),
    }
}

/// Lets no new requests in and returns; those inside end first.
pub(crate) fn unload(app: &App, caller: &Caller, name: &str) -> Result<(), ApiError> {
    check_caller(app, caller)?;
    app.models.unload(name)
}

/// Returns when it is ready.
pub(crate) async fn load(app: &App, caller: &Caller, name: &str) -> Result<(), ApiError> {
    check_caller(app, caller)?;
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
