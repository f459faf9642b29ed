use super::*;

fn file(name: &str, sha256: &str) -> FileFacts {
    FileFacts { name: name.into(), size_bytes: 1, sha256: sha256.into() }
}

#[test]
fn the_digest_of_a_folder_is_that_of_its_sorted_weights() {
    use sha2::{Digest, Sha256};
    let (a, b) = ("a".repeat(64), "b".repeat(64));
    let files = [file("z.safetensors", &a), file("config.json", &a), file("b.safetensors", &b)];
    // What `sha256sum *.safetensors | sha256sum` prints.
    let list = format!("{b}  b.safetensors\n{a}  z.safetensors\n");
    assert_eq!(digest(&files), hex::encode(Sha256::digest(list)));
    assert_eq!(digest(&[file("m.gguf", &a)]), a);
    assert_eq!(digest(&[file("M.GGUF", &a)]), a, "as the engine counts it");
}

#[test]
fn an_error_is_one_reason_of_the_termination_message() {
    let reason = |err: FetchError| Fatal::from(err).reason;
    assert_eq!(reason(FetchError::Unauthorized(String::new())), ExitReason::WeightsUnauthorized);
    assert_eq!(reason(FetchError::NotFound(String::new())), ExitReason::WeightsNotFound);
    assert_eq!(reason(FetchError::Mismatch(String::new())), ExitReason::ChecksumMismatch);
}
