//! `cargo xtask image`: OCI images of our binaries, without a container engine. A staged root is unpacked from
//! Debian's packages, our binary is a layer of its own on top, and every byte is a function of those two: the same
//! packages and binaries give the same digest.

mod layer;
mod layout;
mod stage;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use self::{layer::Layer, layout::ImageConfig};

/// What is built: one image per binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Component {
    Operator,
    Server,
}

impl Component {
    pub(crate) const ALL: [Self; 2] = [Self::Operator, Self::Server];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Server => "server",
        }
    }

    /// File name of the binary, in `target/release` and in `/usr/bin` of the image.
    fn binary(self) -> &'static str {
        match self {
            Self::Operator => "candela-operator",
            Self::Server => "candela-server",
        }
    }

    /// Listeners, as in `wire::config`.
    fn ports(self) -> &'static [u16] {
        match self {
            Self::Operator => &[9090],
            Self::Server => &[8080, 9090],
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Images to build; all of them if none is named.
    #[arg(value_enum)]
    components: Vec<Component>,
    /// Folder of the binaries; default: `target/release`.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Where the images go, as OCI layout archives; default: `target/images`.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Repository part of the image names.
    #[arg(long, default_value = "candela.local")]
    registry: String,
    #[arg(long, default_value = "dev")]
    tag: String,
    /// Fetch the Debian packages again instead of using those kept beside the images.
    #[arg(long)]
    refresh: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let target = target_dir()?;
    let binaries = args.binaries.unwrap_or_else(|| target.join("release"));
    let out = args.out.unwrap_or_else(|| target.join("images"));
    let wanted = if args.components.is_empty() { Component::ALL.to_vec() } else { args.components };
    let inputs: Vec<_> = wanted.iter().map(|c| (*c, binaries.join(c.binary()))).collect();
    for (component, path) in &inputs {
        if !path.is_file() {
            bail!(
                "{} is not there; first run: cargo build --release -p {}",
                path.display(),
                component.binary()
            );
        }
    }
    for (_, path) in &inputs {
        refuse_planted_bugs(path)?;
    }
    // One base for all images: it is one layer, stored and pulled once.
    let paths: Vec<_> = inputs.iter().map(|(_, path)| path.as_path()).collect();
    let base = stage::base(&out, &paths, args.refresh)?;
    let packing = out.join("layers");
    fs::create_dir_all(&packing).with_context(|| format!("failed to create {}", packing.display()))?;
    let base_layer = layer::pack(&layer::scan(&base)?, &packing.join("base.tar.gz"))?;
    for (component, binary) in &inputs {
        let name = format!("{}/{}:{}", args.registry, component.name(), args.tag);
        let built = build(*component, &name, &base, &base_layer, binary, &out)?;
        eprintln!("{name} {} {}", built.digest, built.archive.display());
    }
    Ok(())
}

/// The tests build the operator with faults that the environment turns on. Such a binary may stand in
/// `target/release`, and must not get into an image.
fn refuse_planted_bugs(binary: &Path) -> Result<()> {
    let bytes = fs::read(binary).with_context(|| format!("failed to read {}", binary.display()))?;
    if bytes.windows(PLANTED_BUG.len()).any(|window| window == PLANTED_BUG) {
        bail!("{} was built with the feature `planted-bugs`; build it with: make bins", binary.display());
    }
    Ok(())
}

/// The variable that only such a binary knows.
const PLANTED_BUG: &[u8] = b"CANDELA_PLANTED_BUG";

/// An image on disk.
struct Built {
    /// `sha256:…` of the manifest.
    digest: String,
    archive: PathBuf,
}

fn build(
    component: Component,
    name: &str,
    base: &Path,
    base_layer: &Layer,
    binary: &Path,
    out: &Path,
) -> Result<Built> {
    let rootfs = stage::with_binary(&out.join("stage").join(component.name()), base, binary)?;
    // The layer holds what the staged root has over the base, so the two ways to build see the same files.
    let mut entries = layer::scan(&rootfs)?;
    let base_entries = layer::scan(base)?;
    entries.retain(|path, _| !base_entries.contains_key(path));
    let packed = layer::pack(&entries, &out.join("layers").join(format!("{}.tar.gz", component.name())))?;
    let archive = out.join(format!("{}.tar", component.name()));
    let config = ImageConfig {
        name,
        title: component.binary(),
        entrypoint: format!("/usr/bin/{}", component.binary()),
        ports: component.ports(),
    };
    let digest = layout::write(&archive, &config, &[base_layer.clone(), packed])?;
    Ok(Built { digest, archive })
}

/// Cargo's output folder of this workspace.
pub(crate) fn target_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()) {
        return Ok(dir.into());
    }
    Ok(workspace_root()?.join("target"))
}

/// The folder with the workspace's `Cargo.lock`, from wherever in it the command runs.
pub(crate) fn workspace_root() -> Result<PathBuf> {
    let here = std::env::current_dir().context("failed to read the working directory")?;
    here.ancestors()
        .find(|dir| dir.join("Cargo.lock").is_file())
        .map(Path::to_owned)
        .context("no `Cargo.lock` in this folder or above it; run inside the repository")
}
