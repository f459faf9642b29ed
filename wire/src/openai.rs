//! The OpenAI API as we speak it: requests parsed with errors that name the field, answers as typed values.
//! Shapes only: which limits hold is the server's business, passed in as [`RequestLimits`].

pub mod error;
mod fields;
pub mod request;
pub mod response;

pub use error::{ErrorBody, ErrorDetail, ErrorKind};
pub use fields::InvalidField;
pub use request::{ChatRequest, CompletionRequest, Logprobs, Message, Prompt, RequestLimits, Sampling};
pub use response::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatLogprobs, ChatMessage, Completion,
    CompletionChoice, CompletionLogprobs, FinishReason, Model, ModelList, TokenLogprob, TopLogprob, Usage,
};
