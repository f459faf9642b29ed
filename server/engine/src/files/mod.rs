//! The files of a model, wherever they are: mapped from disk or compiled in. Names are plain file names, so that
//! nothing a model's index says can lead out of its folder.

mod mmap;

use std::{
    fs::File,
    io,
    ops::Deref,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{EmbeddedFile, LoadError};

/// Metadata files (JSON, templates) larger than this are refused: the largest real tokenizer has 35 MB.
const TEXT_LIMIT: usize = 256 << 20;
/// Those that are read as JSON values, which can take ninety times the room of their bytes.
const JSON_LIMIT: usize = 8 << 20;

pub(crate) fn check_text_size(name: &str, bytes: usize) -> Result<(), LoadError> {
    check_size(name, bytes, TEXT_LIMIT)
}

fn check_size(name: &str, bytes: usize, limit: usize) -> Result<(), LoadError> {
    if bytes <= limit {
        return Ok(());
    }
    Err(LoadError::corrupt(name, format!("{bytes} bytes are more than any such file has ({limit})")))
}

/// The folder of a model.
pub(crate) enum Files {
    Folder(PathBuf),
    Embedded(&'static [EmbeddedFile]),
}

/// Where an ONNX graph may lie in a model's folder, the first that is there.
const ONNX: [(&str, &str); 4] = [
    ("", "model.onnx"),
    ("onnx", "model.onnx"),
    ("", "model_quantized.onnx"),
    ("onnx", "model_quantized.onnx"),
];

/// The graph of a model's folder.
pub(crate) struct OnnxFile {
    /// From the model's folder.
    pub(crate) name: String,
    #[cfg(feature = "onnx")]
    pub(crate) path: PathBuf,
}

/// Bytes of one file.
pub(crate) enum Bytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }
}

impl Files {
    pub(crate) fn folder(path: &Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        let meta =
            path.metadata().map_err(|e| LoadError::io(&name, e, "check the path of the model's folder"))?;
        if !meta.is_dir() {
            return Err(LoadError::NotFound {
                file: name,
                hint: "it is not a folder; for a single `.gguf` file set the format to `Gguf`".to_owned(),
            });
        }
        Ok(Self::Folder(path.to_owned()))
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        match self {
            Self::Folder(root) => is_plain(name) && root.join(name).is_file(),
            Self::Embedded(files) => files.iter().any(|file| file.name == name),
        }
    }

    /// The ONNX graph, if there is one.
    pub(crate) fn onnx(&self) -> Option<OnnxFile> {
        let Self::Folder(root) = self else { return None };
        ONNX.iter().find_map(|(folder, name)| {
            let path = root.join(folder).join(name);
            let name = Path::new(folder).join(name).display().to_string();
            path.is_file().then_some(OnnxFile {
                name,
                #[cfg(feature = "onnx")]
                path,
            })
        })
    }

    /// Opens a file that must exist; `hint` says what to do if it does not.
    pub(crate) fn open(&self, name: &str, hint: &str) -> Result<Bytes, LoadError> {
        if !is_plain(name) {
            return Err(LoadError::corrupt(name, "a file name may not contain a path"));
        }
        match self {
            Self::Folder(root) => open_path(&root.join(name)).map_err(|e| LoadError::io(name, e, hint)),
            Self::Embedded(files) => files
                .iter()
                .find(|file| file.name == name)
                .map(|file| Bytes::Static(file.bytes))
                .ok_or_else(|| LoadError::NotFound { file: name.to_owned(), hint: hint.to_owned() }),
        }
    }

    /// A small text file, if there is one.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, LoadError> {
        if !self.contains(name) {
            return Ok(None);
        }
        let bytes = self.open(name, "")?;
        check_text_size(name, bytes.len())?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err(LoadError::corrupt(name, "it is not UTF-8 text")),
        }
    }

    /// A JSON file, if there is one.
    pub(crate) fn json(&self, name: &str) -> Result<Option<serde_json::Value>, LoadError> {
        if self.contains(name) {
            check_size(name, self.open(name, "")?.len(), JSON_LIMIT)?;
        }
        self.parsed(name)
    }

    /// A JSON file in a folder of the model's folder, if there is one.
    pub(crate) fn json_below(
        &self,
        folder: &str,
        name: &str,
    ) -> Result<Option<serde_json::Value>, LoadError> {
        if !is_plain(folder) {
            return Err(LoadError::corrupt(folder, "a folder's name may not contain a path"));
        }
        match self {
            Self::Folder(root) => Self::Folder(root.join(folder)).json(name),
            Self::Embedded(_) => Ok(None),
        }
    }

    /// A JSON file as what it should be: whatever else it holds takes no memory.
    pub(crate) fn parsed<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, LoadError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| LoadError::corrupt(name, format!("it is not valid JSON: {e}")))
    }
}

#[cfg(feature = "onnx")]
impl OnnxFile {
    pub(crate) fn open(&self) -> Result<Bytes, LoadError> {
        open_path(&self.path).map_err(|e| LoadError::io(&self.name, e, "check the model's folder"))
    }

    /// The name from the model's folder of a file beside the graph.
    pub(crate) fn beside(&self, name: &str) -> String {
        Path::new(&self.name).with_file_name(name).display().to_string()
    }

    /// Opens a file beside the graph that holds weights of it.
    pub(crate) fn open_beside(&self, name: &str) -> Result<Bytes, LoadError> {
        let shown = self.beside(name);
        if !is_plain(name) {
            return Err(LoadError::corrupt(&shown, "a file name may not contain a path"));
        }
        let hint = format!("`{}` has weights in it: fetch both", self.name);
        open_path(&self.path.with_file_name(name)).map_err(|e| LoadError::io(&shown, e, &hint))
    }
}

/// Maps a file by its path.
pub(crate) fn open_path(path: &Path) -> io::Result<Bytes> {
    // Looked at first: opening a pipe would wait for somebody to write into it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file"));
    }
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        // An empty file cannot be mapped; its reader will say what is missing.
        return Ok(Bytes::Static(&[]));
    }
    mmap::map(&file).map(Bytes::Mapped)
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', '\0']) && name != "." && name != ".."
}

/// SHA-256 of `bytes` in lower-case hex; `progress` hears how many bytes were read.
pub(crate) fn sha256(bytes: &[u8], progress: &mut dyn FnMut(usize)) -> String {
    let mut hash = Sha256::new();
    for piece in bytes.chunks(8 << 20) {
        hash.update(piece);
        progress(piece.len());
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("model")).unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        let files = Files::folder(&dir.path().join("model")).unwrap();
        for name in ["../secret", "/etc/hostname", "..", "", "a\0b"] {
            assert!(!files.contains(name), "{name:?}");
            assert!(matches!(files.open(name, ""), Err(LoadError::Corrupt { .. })), "{name:?}");
        }
    }

    #[test]
    fn what_is_no_plain_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = open_path(dir.path()).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_missing_folder_is_not_found() {
        let missing = Files::folder(Path::new("/nonexistent/model"));
        assert!(matches!(missing, Err(LoadError::NotFound { .. })));
    }
}
