//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use candela_engine::SpecialTokens;
use candela_wire::{
    config::Task,
    native::{DetokenizeAnswer, DetokenizeRequest, Input, TokenizeAnswer, TokenizeRequest},
    openai::Prompt,
};

use super::{Problem, check_model, tokens};
use crate::{
    api::{error::ApiError, prepare},
    app::App,
    model::Served,
};

pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<TokenizeAnswer>, Problem> {
    Ok(Json(prepare::parsed(&app, request, Task::Generate, tokens_of).await?))
}

pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<DetokenizeAnswer>, Problem> {
    Ok(Json(prepare::parsed(&app, request, Task::Generate, text_of).await?))
}

fn tokens_of(app: &App, served: &Served, body: &[u8]) -> Result<TokenizeAnswer, ApiError> {
    let request = TokenizeRequest::parse(body, &app.limits.shape).map_err(ApiError::Invalid)?;
    check_model(served, request.model.as_deref())?;
    let engine = served.engine()?;
    let tokens = match request.input {
        // Unlike a prompt, an empty text is fine.
        Input::Prompt(Prompt::Text(text)) => {
            let special =
                if request.add_special_tokens { SpecialTokens::Add } else { SpecialTokens::AsWritten };
            engine.encode(&text, special).map_err(|err| ApiError::text(&err, "prompt"))?
        }
        input => tokens(served, input)?,
    };
    let token_strs =
        request.return_token_strs.then(|| tokens.iter().map(|id| engine.token_text(*id)).collect());
    Ok(TokenizeAnswer {
        count: tokens.len(),
        max_model_len: engine.facts().context_length,
        tokens,
        token_strs,
    })
}

fn text_of(app: &App, served: &Served, body: &[u8]) -> Result<DetokenizeAnswer, ApiError> {
    let request = DetokenizeRequest::parse(body, &app.limits.shape).map_err(ApiError::Invalid)?;
    check_model(served, request.model.as_deref())?;
    let vocabulary = served.engine()?.facts().vocabulary_size;
    if let Some(at) = request.tokens.iter().position(|id| *id >= vocabulary) {
        let param = format!("tokens[{at}]");
        return Err(ApiError::invalid(&param, format!("`{param}` is no token: ids are below {vocabulary}")));
    }
    let prompt = served.engine()?.decode(&request.tokens).map_err(|err| ApiError::text(&err, "tokens"))?;
    Ok(DetokenizeAnswer { prompt })
}
