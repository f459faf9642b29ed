//! Rust from the .proto files of the Open Inference Protocol, without `protoc`: protox parses them in this process.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["grpc_service.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        // What this server has no use for (shared memory, traces, log levels) answers UNIMPLEMENTED.
        .generate_default_stubs(true)
        // Tensors are views of the message.
        .bytes(".inference.ModelInferRequest")
        .bytes(".inference.ModelInferResponse")
        // Numbers are checked before anything is built of a message.
        .codec_path("crate::codec::Checked")
        .emit_rerun_if_changed(false)
        .compile_fds(files)?;
    Ok(())
}
