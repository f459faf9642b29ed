//! A folder as a layer of an image: sorted entries, one owner, fixed modes and times, so that the bytes depend on names
//! and contents only.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder, write::GzEncoder};
use sha2::{Digest, Sha256};

/// User and group that every image runs as. It owns nothing in the image.
pub(super) const NONROOT: u32 = 65532;

/// A packed layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) path: PathBuf,
    /// Of the compressed bytes.
    pub(super) digest: String,
    /// Of the tar inside.
    pub(super) diff_id: String,
    pub(super) size: u64,
}

/// What one path of a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) mode: u32,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    /// Where its bytes are.
    File(PathBuf),
    /// Target, as written.
    Link(PathBuf),
}

/// Every path under `root`, with the mode that it has in an image.
pub(super) fn scan(root: &Path) -> Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    scan_folder(root, "", &mut entries)?;
    Ok(entries)
}

fn scan_folder(folder: &Path, prefix: &str, entries: &mut BTreeMap<String, Entry>) -> Result<()> {
    for item in fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))? {
        let path = item?.path();
        let name = path.file_name().and_then(|n| n.to_str());
        let Some(name) = name else { bail!("the name of {} is not UTF-8", path.display()) };
        let inside = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        let metadata = path.symlink_metadata()?;
        let kind = if metadata.is_symlink() {
            Kind::Link(fs::read_link(&path)?)
        } else if metadata.is_dir() {
            scan_folder(&path, &inside, entries)?;
            Kind::Folder
        } else if metadata.is_file() {
            Kind::File(path.clone())
        } else {
            bail!("{} is neither a file, a folder nor a link", path.display());
        };
        let mode = mode(&inside, &kind, metadata.permissions().mode());
        entries.insert(inside, Entry { mode, kind });
    }
    Ok(())
}

/// Packages bring setuid bits and odd masks; an image that runs without privileges needs neither.
fn mode(path: &str, kind: &Kind, found: u32) -> u32 {
    match kind {
        Kind::Folder if path == "tmp" || path == "var/tmp" => 0o1777,
        Kind::Folder => 0o755,
        Kind::File(_) if found & 0o111 != 0 => 0o755,
        Kind::File(_) => 0o644,
        Kind::Link(_) => 0o777,
    }
}

/// Writes the layer as a compressed tar to `path`.
pub(super) fn pack(entries: &BTreeMap<String, Entry>, path: &Path) -> Result<Layer> {
    let file = File::create(path).with_context(|| format!("failed to create {}", path.display()))?;
    let compressed = Hashed::new(BufWriter::new(file));
    // No name and no time in the gzip header, the same system byte everywhere.
    let gzip: GzEncoder<_> =
        GzBuilder::new().mtime(0).operating_system(255).write(compressed, Compression::new(6));
    let mut tar = tar::Builder::new(Hashed::new(gzip));
    for (name, entry) in entries {
        append(&mut tar, name, entry).with_context(|| format!("failed to pack `{name}`"))?;
    }
    let (gzip, diff_id, _) = tar.into_inner()?.finish();
    let (mut file, digest, size) = gzip.finish()?.finish();
    file.flush()?;
    Ok(Layer { path: path.to_owned(), digest, diff_id, size })
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, entry: &Entry) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    match &entry.kind {
        Kind::Folder => {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, format!("{name}/"), io::empty())?;
        }
        Kind::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, name, target)?;
        }
        Kind::File(source) => {
            let file = File::open(source)?;
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(file.metadata()?.len());
            tar.append_data(&mut header, name, BufReader::new(file))?;
        }
    }
    Ok(())
}

/// A writer that knows the digest and length of what went through it.
pub(super) struct Hashed<W> {
    inner: W,
    hash: Sha256,
    length: u64,
}

impl<W: Write> Hashed<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), length: 0 }
    }

    /// The writer, `sha256:…`, bytes.
    pub(super) fn finish(self) -> (W, String, u64) {
        (self.inner, format!("sha256:{}", hex::encode(self.hash.finalize())), self.length)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
