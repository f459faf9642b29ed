//! A tokenizer for models with random weights.

/// Its words are `w0`, `w1`, … of the same ids; `w2` begins a text, `w3` ends one.
pub(crate) fn tokenizer() -> serde_json::Value {
    let vocabulary: serde_json::Map<_, _> =
        (0..40).map(|i| (format!("w{i}"), serde_json::json!(i))).collect();
    let special =
        |id: u32| serde_json::json!({"id": format!("w{id}"), "ids": [id], "tokens": [format!("w{id}")]});
    let token =
        |id: u32, kind: u32| serde_json::json!({"SpecialToken": {"id": format!("w{id}"), "type_id": kind}});
    let text = |id: &str, kind: u32| serde_json::json!({"Sequence": {"id": id, "type_id": kind}});
    let added = [2, 3].map(|id| {
        serde_json::json!({
            "id": id, "content": format!("w{id}"), "special": true, "normalized": false, "single_word": false,
            "lstrip": false, "rstrip": false
        })
    });
    serde_json::json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [token(2, 0), text("A", 0), token(3, 0)],
            "pair": [token(2, 0), text("A", 0), token(3, 0), text("B", 1), token(3, 1)],
            "special_tokens": {"w2": special(2), "w3": special(3)}
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    })
}
