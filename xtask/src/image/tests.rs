use std::{collections::BTreeMap, fs, io::Read, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use serde_json::Value;

use super::*;

/// A staged root as small as one can be.
fn sample(root: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let path = root.join(name);
        fs::create_dir_all(path.parent().context("a parent")?)?;
        fs::write(&path, format!("bytes of {name}"))?;
    }
    fs::create_dir_all(root.join("tmp"))?;
    std::os::unix::fs::symlink("../usr/lib/os-release", root.join("etc/os-release"))?;
    Ok(())
}

fn image(root: &Path, out: &Path) -> Result<(Layer, String)> {
    let packed = layer::pack(&layer::scan(root)?, &out.join("layer.tar.gz"))?;
    let config = ImageConfig {
        name: "candela.local/sample:dev",
        title: "sample",
        entrypoint: "/usr/bin/sample".to_owned(),
        ports: &[9090],
    };
    let digest = layout::write(&out.join("sample.tar"), &config, std::slice::from_ref(&packed))?;
    Ok((packed, digest))
}

#[test]
fn order_time_and_odd_modes_of_the_files_do_not_change_the_digest() -> Result<()> {
    let (one, two) = (tempfile::tempdir()?, tempfile::tempdir()?);
    sample(one.path(), &["etc/passwd", "usr/bin/sample", "usr/lib/os-release"])?;
    sample(two.path(), &["usr/lib/os-release", "usr/bin/sample", "etc/passwd"])?;
    fs::set_permissions(two.path().join("etc/passwd"), fs::Permissions::from_mode(0o600))?;
    fs::File::options()
        .write(true)
        .open(two.path().join("etc/passwd"))?
        .set_modified(std::time::UNIX_EPOCH)?;
    let (out_one, out_two) = (tempfile::tempdir()?, tempfile::tempdir()?);
    assert_eq!(image(one.path(), out_one.path())?.1, image(two.path(), out_two.path())?.1);
    assert_eq!(fs::read(out_one.path().join("sample.tar"))?, fs::read(out_two.path().join("sample.tar"))?);
    Ok(())
}

#[test]
fn another_byte_in_a_file_is_another_image() -> Result<()> {
    let (root, out) = (tempfile::tempdir()?, tempfile::tempdir()?);
    sample(root.path(), &["etc/passwd", "usr/bin/sample"])?;
    let before = image(root.path(), out.path())?.1;
    fs::write(root.path().join("etc/passwd"), "bytes of etc/passwd.")?;
    assert_ne!(before, image(root.path(), out.path())?.1);
    Ok(())
}

#[test]
fn every_blob_has_the_digest_it_is_stored_under() -> Result<()> {
    let (root, out) = (tempfile::tempdir()?, tempfile::tempdir()?);
    sample(root.path(), &["etc/passwd", "usr/bin/sample"])?;
    let (packed, digest) = image(root.path(), out.path())?;
    let files = Archive::open(&out.path().join("sample.tar"))?;
    assert_eq!(files.manifest_digest()?, digest);
    let (config, layers) = files.image()?;
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["rootfs"]["diff_ids"][0], packed.diff_id.as_str());
    let paths: Vec<_> = layers.keys().map(String::as_str).collect();
    assert_eq!(paths, ["etc", "etc/os-release", "etc/passwd", "tmp", "usr", "usr/bin", "usr/bin/sample"]);
    assert_eq!(layers["tmp"].mode, 0o1777);
    Ok(())
}

#[test]
fn an_unknown_library_is_refused_with_the_way_out() {
    let error = stage::package_of("libpq.so.5").expect_err("not in the list");
    assert!(error.to_string().contains("xtask/src/image/stage.rs"), "{error}");
    assert_eq!(stage::package_of("libgcc_s.so.1").ok(), Some("libgcc-s1"));
}

#[test]
fn a_binary_with_planted_bugs_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (clean, planted) = (folder.path().join("clean"), folder.path().join("planted"));
    fs::write(&clean, b"\x7fELF\0candela")?;
    fs::write(&planted, b"\x7fELF\0CANDELA_PLANTED_BUG\0")?;
    refuse_planted_bugs(&clean)?;
    let error = refuse_planted_bugs(&planted).expect_err("it is refused");
    assert!(error.to_string().contains("make bins"), "{error}");
    Ok(())
}

/// The real images, made again from the same binaries, in another folder.
#[test]
fn images_assembled_twice_from_the_same_binaries_have_the_same_digest() -> Result<()> {
    let built = built_images()?;
    let again = tempfile::tempdir_in(&built)?;
    // The same package files, so that a new release in Debian's archive between the two runs is no difference.
    copy_folder(&built.join("debs"), &again.path().join("debs"))?;
    let registry = "candela.local".to_owned();
    run(Args {
        components: Vec::new(),
        binaries: Some(staged_binaries(&built, again.path())?),
        out: Some(again.path().to_owned()),
        registry,
        tag: "dev".to_owned(),
        refresh: false,
    })?;
    for component in Component::ALL {
        let name = format!("{}.tar", component.name());
        let first = Archive::open(&built.join(&name))?;
        assert_eq!(
            first.manifest_digest()?,
            Archive::open(&again.path().join(&name))?.manifest_digest()?,
            "{name}"
        );
    }
    Ok(())
}

/// Debian's buildah, from the Dockerfile and the staged root, without network: the same files and the same settings.
#[test]
fn the_dockerfile_built_by_buildah_gives_the_same_image() -> Result<()> {
    let built = built_images()?;
    for component in Component::ALL {
        let ours = Archive::open(&built.join(format!("{}.tar", component.name())))?;
        let (our_config, our_files) = ours.image()?;
        let work = tempfile::tempdir_in(&built)?;
        let buildah = |args: &[&str]| -> Result<String> {
            let mut command = Command::new("buildah");
            command.args(["--storage-driver", "vfs"]);
            command
                .arg("--root")
                .arg(work.path().join("store"))
                .arg("--runroot")
                .arg(work.path().join("run"));
            stage::run(command.args(args).env("BUILDAH_ISOLATION", "chroot"))
        };
        let file = workspace_root()?.join(format!("manifests/images/{}.Dockerfile", component.name()));
        let context = built.join("stage").join(component.name());
        let (file, context) = (file.display().to_string(), context.display().to_string());
        buildah(&["bud", "--isolation", "chroot", "--quiet", "--tag", "sample", "-f", &file, &context])?;
        let archive = work.path().join("buildah.tar");
        buildah(&["push", "--quiet", "sample", &format!("oci-archive:{}:sample", archive.display())])?;

        let (config, files) = Archive::open(&archive)?.image()?;
        for key in ["User", "Entrypoint", "ExposedPorts", "WorkingDir", "Env"] {
            assert_eq!(config["config"][key], our_config["config"][key], "{key} of {}", component.name());
        }
        let (theirs, ours): (Vec<_>, Vec<_>) = (files.keys().collect(), our_files.keys().collect());
        assert_eq!(theirs, ours, "paths of {}", component.name());
        for (path, file) in &files {
            assert!(*file == our_files[path], "{path} of {} differs: {file:?}", component.name());
        }
    }
    Ok(())
}

/// Where `make images` left the images; the tests compare with those that everything else runs.
fn built_images() -> Result<PathBuf> {
    let images = target_dir()?.join("images");
    ensure!(images.join("server.tar").is_file(), "no images in {}; first run: make images", images.display());
    Ok(images)
}

/// The binaries that are in the images, which `target/release` may since have moved on from.
fn staged_binaries(built: &Path, into: &Path) -> Result<PathBuf> {
    let folder = into.join("binaries");
    fs::create_dir_all(&folder)?;
    for component in Component::ALL {
        let staged =
            built.join("stage").join(component.name()).join("rootfs/usr/bin").join(component.binary());
        fs::copy(&staged, folder.join(component.binary()))
            .with_context(|| format!("failed to copy {staged:?}"))?;
    }
    Ok(folder)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for item in fs::read_dir(from)? {
        let item = item?;
        fs::copy(item.path(), to.join(item.file_name()))?;
    }
    Ok(())
}

/// An OCI archive, read back.
struct Archive(BTreeMap<String, Vec<u8>>);

/// A file of an image's root: what two ways of building must agree on.
#[derive(PartialEq, Eq)]
struct Found {
    mode: u32,
    owner: (u64, u64),
    link: Option<PathBuf>,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "mode {:o}, owner {:?}, link {:?}, {} bytes",
            self.mode,
            self.owner,
            self.link,
            self.bytes.len()
        )
    }
}

impl Archive {
    fn open(path: &Path) -> Result<Self> {
        let file = fs::File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(file).entries()? {
            let mut entry = entry?;
            let name = entry.path()?.display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(name, bytes);
        }
        Ok(Self(files))
    }

    fn json(&self, name: &str) -> Result<Value> {
        serde_json::from_slice(self.0.get(name).with_context(|| format!("no `{name}`"))?).context("not JSON")
    }

    fn manifest_digest(&self) -> Result<String> {
        let index = self.json("index.json")?;
        Ok(index["manifests"][0]["digest"].as_str().context("a digest")?.to_owned())
    }

    fn blob(&self, digest: &Value) -> Result<&[u8]> {
        let digest = digest.as_str().context("a digest")?;
        let bytes =
            self.0.get(&format!("blobs/{}", digest.replace(':', "/"))).context("the blob is missing")?;
        let mut hashed = layer::Hashed::new(std::io::sink());
        std::io::Write::write_all(&mut hashed, bytes)?;
        ensure!(hashed.finish().1 == digest, "the blob {digest} holds other bytes");
        Ok(bytes)
    }

    /// The configuration and the files of all layers on top of each other.
    fn image(&self) -> Result<(Value, BTreeMap<String, Found>)> {
        let manifest: Value = serde_json::from_slice(self.blob(&Value::from(self.manifest_digest()?))?)?;
        let config = serde_json::from_slice(self.blob(&manifest["config"]["digest"])?)?;
        let mut files = BTreeMap::new();
        for layer in manifest["layers"].as_array().context("layers")? {
            let mut tar = tar::Archive::new(GzDecoder::new(self.blob(&layer["digest"])?));
            for entry in tar.entries()? {
                let mut entry = entry?;
                let path = entry.path()?.display().to_string();
                let path = path.trim_start_matches("./").trim_matches('/').to_owned();
                if path.is_empty() || path == "." {
                    continue;
                }
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                let header = entry.header();
                let found = Found {
                    mode: header.mode()? & 0o7777,
                    owner: (header.uid()?, header.gid()?),
                    link: entry.link_name()?.map(|l| l.into_owned()),
                    bytes,
                };
                files.insert(path, found);
            }
        }
        Ok((config, files))
    }
}
