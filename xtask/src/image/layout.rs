//! The OCI image layout: blobs by digest, an index that names the image, all in one archive that `ctr images import`,
//! `podman load` and `skopeo` read.

use std::{
    fs::File,
    io::{BufWriter, Read, Write},
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::layer::{Layer, NONROOT};

/// What sets one image apart from another, besides its layers.
pub(super) struct ImageConfig<'a> {
    /// Full reference, such as `candela.local/operator:dev`.
    pub(super) name: &'a str,
    pub(super) title: &'a str,
    pub(super) entrypoint: String,
    pub(super) ports: &'a [u16],
}

/// Every image carries the time of the epoch: a build's own time would make each build another image.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Writes the archive and returns the digest of the image's manifest.
pub(super) fn write(archive: &Path, image: &ImageConfig<'_>, layers: &[Layer]) -> Result<String> {
    let config = serde_json::to_vec(&config(image, layers))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &digest(&config), config.len() as u64),
        "layers": layers.iter().map(|layer| {
            descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer.digest, layer.size)
        }).collect::<Vec<_>>(),
    }))?;
    let manifest_digest = digest(&manifest);
    let mut top =
        descriptor("application/vnd.oci.image.manifest.v1+json", &manifest_digest, manifest.len() as u64);
    // containerd names the image by the first annotation, other tools by the second.
    top["annotations"] = json!({
        "io.containerd.image.name": image.name,
        "org.opencontainers.image.ref.name": image.name,
    });
    top["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [top],
    }))?;

    // Written beside and renamed: a reader never sees half an archive.
    let partial = archive.with_extension("tar.partial");
    let file = File::create(&partial).with_context(|| format!("failed to create {}", partial.display()))?;
    let mut tar = tar::Builder::new(BufWriter::new(file));
    put(&mut tar, "oci-layout", 30, br#"{"imageLayoutVersion":"1.0.0"}"#.as_slice())?;
    put(&mut tar, "index.json", index.len() as u64, index.as_slice())?;
    let mut blobs =
        vec![(digest(&config), Blob::Bytes(&config)), (manifest_digest.clone(), Blob::Bytes(&manifest))];
    blobs.extend(layers.iter().map(|layer| (layer.digest.clone(), Blob::Layer(layer))));
    blobs.sort_by(|a, b| a.0.cmp(&b.0));
    for (digest, blob) in &blobs {
        let name = format!("blobs/{}", digest.replace(':', "/"));
        match blob {
            Blob::Bytes(bytes) => put(&mut tar, &name, bytes.len() as u64, *bytes)?,
            Blob::Layer(layer) => put(&mut tar, &name, layer.size, File::open(&layer.path)?)?,
        }
    }
    tar.into_inner()?.flush()?;
    std::fs::rename(&partial, archive).with_context(|| format!("failed to write {}", archive.display()))?;
    Ok(manifest_digest)
}

enum Blob<'a> {
    Bytes(&'a [u8]),
    Layer(&'a Layer),
}

fn config(image: &ImageConfig<'_>, layers: &[Layer]) -> Value {
    let ports: serde_json::Map<_, _> = image.ports.iter().map(|p| (format!("{p}/tcp"), json!({}))).collect();
    json!({
        "architecture": architecture(),
        "os": "linux",
        "created": CREATED,
        "config": {
            "User": format!("{NONROOT}:{NONROOT}"),
            "Env": ["PATH=/usr/bin:/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
            "Entrypoint": [image.entrypoint],
            "WorkingDir": "/",
            "ExposedPorts": ports,
            "Labels": {
                "org.opencontainers.image.title": image.title,
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>(),
        },
        "history": [
            { "created": CREATED, "created_by": "cargo xtask image: Debian packages" },
            { "created": CREATED, "created_by": format!("cargo xtask image: {}", image.title) },
        ],
    })
}

/// OCI's word for the machine this runs on: the binaries in the image are this machine's.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn put<W: Write>(tar: &mut tar::Builder<W>, name: &str, size: u64, content: impl Read) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    tar.append_data(&mut header, name, content).with_context(|| format!("failed to write `{name}`"))
}
