//! `spec.model`.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::DNS_SUBDOMAIN;

/// One model to serve.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.revision) || (has(self.uri) && self.uri.startsWith('hf://'))")
        .message("model.revision is a commit, tag or branch of an hf:// repository: remove it, or write model.uri as hf://ORG/NAME"),
    validation = Rule::new("!has(self.credentialsRef) || (has(self.uri) && (self.uri.startsWith('hf://') || self.uri.startsWith('http://') || self.uri.startsWith('https://')))")
        .message("model.credentialsRef is only sent to hf:// and http(s):// sources: remove it, or change model.uri"),
    validation = Rule::new("!has(self.verification) || (has(self.uri) && !self.uri.startsWith('builtin://'))")
        .message("builtin:// models come verified with the image: remove model.verification"),
    validation = Rule::new("!has(self.tasks) || !has(self.uri) || !self.uri.startsWith('builtin://') || self.tasks.all(t, t == 'Generate')")
        .message("builtin://demo generates text and nothing else: remove model.tasks, or name an embedding model in model.uri"),
    validation = Rule::new("!has(self.tasks) || self.tasks.size() <= 1")
        .message("model.tasks may hold one task, since each architecture is for one: keep one, or remove the field"),
    validation = Rule::new("!has(self.tasks) || !has(self.format) || self.format != 'Gguf' || self.tasks.all(t, t == 'Generate')")
        .message("model.format Gguf is for models that generate text: remove model.format, and name a folder with safetensors in model.uri")
)]
pub struct Model {
    /// Where the weights are: `builtin://demo`, `hf://ORG/NAME` (or one `/FILE.gguf` of it), `http(s)://HOST/PATH` (one `.gguf` file, or a
    /// folder with `config.json`), or `pvc://CLAIM/PATH`. Only engine Custom may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^builtin://demo$|^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._/-]+[.]gguf)?$|^https?://[A-Za-z0-9._-]+(:[0-9]{1,5})?/[!-~]+$|^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._/-]*)?$') && !self.contains('/../') && !self.endsWith('/..')")
        .message("model.uri must be builtin://demo, hf://ORG/NAME, hf://ORG/NAME/FILE.gguf, http://HOST/PATH, https://HOST/PATH or pvc://CLAIM/PATH (no spaces, no credentials, no ..)"))]
    pub uri: Option<String>,
    /// Commit, tag or branch of an `hf://` repository. Pin a commit: branches move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._/-]*$"))]
    pub revision: Option<String>,
    /// Name that clients send as `model`; absent = `metadata.name`, required in `additionalModels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9._/:-]*[A-Za-z0-9])?$') && !self.contains('..') && !self.contains('//')")
        .message("model.servedName must be letters, digits and . _ / : - (no .. and no //), starting and ending with a letter or digit"))]
    pub served_name: Option<String>,
    /// Format of the weights; absent = found in the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<WeightsFormat>,
    /// What weights of 16 and 32 bits become when they are loaded: `Q8` (about 8.5 bits per weight), `Q4` (about 4.5), or
    /// `None`: they stay as they are, which is also what absent means. Weights that are quantised already stay what they
    /// are. `status.models[].quantization` says what most weights are in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 16))]
    #[x_kube(validation = Rule::new("self in ['None', 'Q8', 'Q4']")
        .message("model.quantization must be None, Q8 or Q4: other types (Fp8, Awq, …) come quantised in the files or need engine Custom; remove the field for what the files hold"))]
    pub quantization: Option<Quantization>,
    /// Upper bound on prompt plus output, in tokens; absent = what the model's own configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 16 && self <= 16777216").message("model.contextLength must be a number of tokens from 16 to 16777216"))]
    pub context_length: Option<i32>,
    /// What the model is for; absent = what its architecture is for. A model that cannot do it (an encoder cannot Generate)
    /// ends in `ModelAvailable=False` with the reason `ModelUnsupported`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "set"))]
    pub tasks: Vec<Task>,
    /// Key of a Secret with a bearer token for the source. The Secret needs the label
    /// `candela.dev/usable: "true"`, and the host of the source in its annotation `candela.dev/hosts`: HOST, HOST:PORT for
    /// a port of its own, http://HOST for a source without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<KeyRef>,
    /// What the bytes must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
}

/// Format of the weight files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WeightsFormat {
    Safetensors,
    Gguf,
}

/// What weights are quantised to when they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quantization {
    None,
    Q8,
    Q4,
}

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Task {
    /// Chat and completions.
    Generate,
    /// Texts to vectors.
    Embed,
    /// Scores of documents for a query.
    Rerank,
    /// Labels of the words of a text, such as names of people.
    TokenClassify,
}

/// One key of a Secret or ConfigMap in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253), regex(pattern = DNS_SUBDOMAIN))]
    pub name: String,
    /// Key in the object.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// What the bytes of the model must be.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// SHA-256 in lower-case hex: of the file for a model of one file, of the sorted lines `SHA256  NAME` for a folder.
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f]{64}$')").message("model.verification.sha256 must be 64 lower-case hex digits, as sha256sum prints them"))]
    pub sha256: String,
}
