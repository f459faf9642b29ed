//! The test hub as a program, for clients that are not written in Rust: serves the repositories below a folder
//! and prints its address as one line of JSON.

use std::path::PathBuf;

#[allow(dead_code, reason = "faults are for the tests in Rust")]
#[path = "hub.rs"]
mod hub;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    use std::io::Write;
    let dir =
        PathBuf::from(std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("usage: test-hub FOLDER"))?);
    let hub = hub::Hub::of_folder(&dir).await?;
    writeln!(std::io::stdout(), "{}", serde_json::json!({ "endpoint": hub.endpoint }))?;
    tokio::signal::ctrl_c().await?;
    Ok(())
}
