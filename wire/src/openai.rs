//! The OpenAI API as we speak it: requests parsed with errors that name the field, answers as typed values.
//! Shapes only: which limits hold is the server's business, passed in as [`RequestLimits`].

pub mod error;
pub(crate) mod fields;
pub(crate) mod format;
pub(crate) mod message;
pub mod request;
pub mod response;
mod responses;
mod tools;

pub use error::{ErrorBody, ErrorDetail, ErrorKind};
pub use fields::InvalidField;
pub use format::{Format, FormatKind};
pub use message::{Message, PastCall, PastFunction};
pub use request::{
    ChatRequest, CompletionRequest, Delivery, Logprobs, Prompt, RequestLimits, Sampling, Speculation,
};
pub use response::{
    CalledFunction, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatLogprobs,
    ChatMessage, Completion, CompletionChoice, CompletionLogprobs, CompletionTokensDetails, FinishReason,
    Model, ModelList, PromptTokensDetails, Timings, TokenLogprob, ToolCall, ToolCallDelta, TopLogprob, Usage,
};
pub use responses::ResponsesRequest;
pub use tools::{Function, ToolChoice, Tools};
