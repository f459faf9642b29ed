//! A folder of models in Triton's layout: `<repository>/<model>/<version>/<files>`. Names come from clients and from
//! whoever writes to the folder: nothing outside of it is read, and no scan is longer than its bounds.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::settings::{MAX_SETTINGS_BYTES, SETTINGS, Settings};

/// Entries of one folder that are looked at.
const MAX_ENTRIES: usize = 4096;
/// Models of the index.
pub(super) const MAX_MODELS: usize = 1024;
const MAX_NAME_BYTES: usize = 200;
/// Files of one version, and folders within it.
const MAX_FILES: usize = 1024;
const MAX_DEPTH: usize = 3;

/// The folder.
#[derive(Clone, Debug)]
pub(super) struct Repository {
    root: PathBuf,
}

/// Why a model cannot be had from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is none of that name.
    NotFound,
    /// It is there, and not good.
    Bad(String),
}

/// A model's folder.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Folder {
    pub(super) settings: Settings,
    /// Ascending.
    pub(super) versions: Vec<u64>,
    /// Those of them that its policy chooses.
    pub(super) wanted: Vec<u64>,
}

/// What the files of a version looked like: path, size, time of change, inode.
pub(super) type Print = Vec<(PathBuf, u64, i64, i64, u64)>;

impl Repository {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let root = root.canonicalize()?;
        if !root.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a folder"));
        }
        if root.to_str().is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "its path must be UTF-8"));
        }
        Ok(Self { root })
    }

    /// A message whose paths begin in this folder.
    pub(super) fn within(&self, message: &str) -> String {
        let root = self.root.display().to_string();
        message.replace(&format!("{root}/"), "").replace(&root, "the repository")
    }

    /// Names of all folders that may be models, ascending. False = there are more than are looked at.
    pub(super) fn names(&self) -> io::Result<(Vec<String>, bool)> {
        let (mut names, mut all) = (Vec::new(), true);
        for (at, entry) in fs::read_dir(&self.root)?.enumerate() {
            if at >= MAX_ENTRIES || names.len() >= MAX_MODELS {
                all = false;
                break;
            }
            let Ok(name) = entry?.file_name().into_string() else { continue };
            if is_name(&name) && self.inside(&name).is_ok_and(|path| path.is_dir()) {
                names.push(name);
            }
        }
        names.sort();
        Ok((names, all))
    }

    /// The model of this name, which may be anything.
    pub(super) fn model(&self, name: &str) -> Result<Folder, Refusal> {
        if !is_name(name) {
            return Err(Refusal::NotFound);
        }
        let path = self.inside(name)?;
        if !path.is_dir() {
            return Err(Refusal::NotFound);
        }
        let versions = versions(&path)?;
        if versions.is_empty() {
            return Err(bad(
                "its folder holds no version: put its files into a folder named by a number, such as `1`",
            ));
        }
        let settings = self.settings(name, &path)?;
        let wanted = settings.version_policy.of(&versions).map_err(|missing| {
            Refusal::Bad(format!("`{SETTINGS}`: `versionPolicy` names version {missing}, which is not there"))
        })?;
        Ok(Folder { settings, versions, wanted })
    }

    fn settings(&self, name: &str, path: &Path) -> Result<Settings, Refusal> {
        if fs::symlink_metadata(path.join(SETTINGS)).is_err() {
            if path.join("config.pbtxt").exists() {
                return Err(Refusal::Bad(format!(
                    "`config.pbtxt` is not read here: say in `{SETTINGS}` what of it is meant (`versionPolicy`, \
                     `instances`, `contextLength`, …; `{{}}` for nothing)"
                )));
            }
            return Ok(Settings::default());
        }
        let file = self.inside(&format!("{name}/{SETTINGS}"))?;
        let meta = fs::metadata(&file).map_err(unreadable)?;
        if !meta.is_file() || meta.len() > MAX_SETTINGS_BYTES {
            return Err(Refusal::Bad(format!(
                "`{SETTINGS}` must be a plain file of at most {MAX_SETTINGS_BYTES} bytes"
            )));
        }
        Settings::parse(&fs::read(&file).map_err(unreadable)?).map_err(Refusal::Bad)
    }

    /// Where the files of a version lie: its folder, or the only GGUF file in it by way of that folder.
    pub(super) fn version(&self, name: &str, version: u64) -> Result<PathBuf, Refusal> {
        if !is_name(name) {
            return Err(Refusal::NotFound);
        }
        let path = self.inside(&format!("{name}/{version}"))?;
        if path.is_dir() { Ok(path) } else { Err(Refusal::NotFound) }
    }

    /// Looks at all files of a version: none may lie outside of the repository.
    pub(super) fn print(&self, version: &Path) -> Result<Print, Refusal> {
        let mut print = Vec::new();
        let mut folders = vec![(version.to_owned(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(unreadable)? {
                let path = entry.map_err(unreadable)?.path();
                if print.len() >= MAX_FILES {
                    return Err(Refusal::Bad(format!("its version holds more than {MAX_FILES} files")));
                }
                let (path, meta) = self.checked(path)?;
                if meta.is_dir() {
                    if depth >= MAX_DEPTH {
                        return Err(Refusal::Bad(format!(
                            "its version holds folders more than {MAX_DEPTH} deep"
                        )));
                    }
                    folders.push((path.clone(), depth + 1));
                }
                print.push((path, meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino()));
            }
        }
        print.sort();
        Ok(print)
    }

    fn checked(&self, path: PathBuf) -> Result<(PathBuf, Metadata), Refusal> {
        let real = path.canonicalize().map_err(unreadable)?;
        if !real.starts_with(&self.root) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            return Err(Refusal::Bad(format!("`{name}` is a link that leaves the repository")));
        }
        let meta = fs::metadata(&real).map_err(unreadable)?;
        Ok((real, meta))
    }

    /// A path below the root, links followed.
    fn inside(&self, relative: &str) -> Result<PathBuf, Refusal> {
        let path = self.root.join(relative);
        match fs::symlink_metadata(&path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Err(Refusal::NotFound),
            Err(err) => return Err(unreadable(err)),
            Ok(_) => {}
        }
        self.checked(path).map(|(path, _)| path)
    }
}

/// Names that are a folder's own and fit into headers, metrics and `NAME:VERSION`.
fn is_name(name: &str) -> bool {
    let plain = |c: char| !c.is_control() && !matches!(c, '/' | '\\' | ':' | '"');
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && name.chars().all(plain)
        && http::HeaderValue::from_str(name).is_ok()
}

/// Folders with a number for a name; as in Triton, others mean nothing, and neither do numbers that begin with 0.
fn versions(model: &Path) -> Result<Vec<u64>, Refusal> {
    let mut versions = Vec::new();
    for (at, entry) in fs::read_dir(model).map_err(unreadable)?.enumerate() {
        if at >= MAX_ENTRIES {
            return Err(Refusal::Bad(format!("its folder holds more than {MAX_ENTRIES} entries")));
        }
        let entry = entry.map_err(unreadable)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !name.starts_with('0')
            && name.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(version) = name.parse()
            && i64::try_from(version).is_ok()
            && entry.path().is_dir()
        {
            versions.push(version);
        }
    }
    versions.sort_unstable();
    Ok(versions)
}

fn bad(what: &str) -> Refusal {
    Refusal::Bad(what.to_owned())
}

fn unreadable(err: io::Error) -> Refusal {
    Refusal::Bad(format!("its files cannot be read: {err}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn repository(files: &[&str]) -> (tempfile::TempDir, Repository) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join("models").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{}").unwrap();
        }
        let repository = Repository::open(&dir.path().join("models")).unwrap();
        (dir, repository)
    }

    #[test]
    fn folders_with_numbers_are_versions() {
        let files = ["a/1/x", "a/12/x", "a/03/x", "a/0/x", "a/new/x", "a/99999999999999999999/x", "a/7"];
        let (_dir, repository) = repository(&files);
        let folder = repository.model("a").unwrap();
        assert_eq!((folder.versions, folder.wanted), (vec![1, 12], vec![12]));
        assert!(repository.version("a", 12).unwrap().ends_with("a/12"));
        assert_eq!(repository.version("a", 2), Err(Refusal::NotFound));
    }

    #[test]
    fn names_lead_nowhere_else() {
        let (dir, repository) = repository(&["a/1/x", ".hidden/1/x"]);
        fs::create_dir_all(dir.path().join("outside/1")).unwrap();
        for name in [
            "",
            ".",
            "..",
            "../outside",
            "a/1",
            "/etc",
            "a\0",
            "a\n",
            ".hidden",
            "b",
            "a:1",
            &"a".repeat(300),
        ] {
            assert_eq!(repository.model(name), Err(Refusal::NotFound), "{name:?}");
            assert_eq!(repository.version(name, 1), Err(Refusal::NotFound), "{name:?}");
        }
        assert_eq!(repository.names().unwrap(), (vec!["a".to_owned()], true));
    }

    #[test]
    fn links_may_not_leave_the_repository() {
        let (dir, repository) = repository(&["a/1/x", "b/1/x", "c/candela.json", "c/1/x"]);
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("1")).unwrap();
        fs::write(outside.join("secret"), "s").unwrap();
        symlink(&outside, repository.root.join("linked")).unwrap();
        assert!(matches!(repository.model("linked"), Err(Refusal::Bad(what)) if what.contains("leaves")));
        assert!(!repository.names().unwrap().0.contains(&"linked".to_owned()));
        symlink(outside.join("secret"), repository.root.join("a/1/model.gguf")).unwrap();
        let version = repository.version("a", 1).unwrap();
        assert!(matches!(repository.print(&version), Err(Refusal::Bad(what)) if what.contains("model.gguf")));
        fs::remove_file(repository.root.join("c/candela.json")).unwrap();
        symlink(outside.join("secret"), repository.root.join("c/candela.json")).unwrap();
        assert!(matches!(repository.model("c"), Err(Refusal::Bad(what)) if what.contains("leaves")));
        // Within it, as tools that store each file once make them.
        symlink(repository.root.join("b/1/x"), repository.root.join("b/1/y")).unwrap();
        assert_eq!(repository.print(&repository.version("b", 1).unwrap()).unwrap().len(), 2);
        // A circle has no end, and is no file.
        symlink(repository.root.join("b/1"), repository.root.join("b/1/again")).unwrap();
        assert!(repository.print(&repository.version("b", 1).unwrap()).is_err());
    }

    #[test]
    fn scans_are_bounded() {
        let (_dir, repository) = repository(&["a/1/x"]);
        for n in 0..MAX_MODELS + 5 {
            fs::create_dir(repository.root.join(format!("m{n}"))).unwrap();
        }
        let (names, all) = repository.names().unwrap();
        assert_eq!((names.len(), all), (MAX_MODELS, false));
        for n in 0..=MAX_ENTRIES {
            fs::create_dir(repository.root.join("a").join(format!("v{n}"))).unwrap();
        }
        assert!(matches!(repository.model("a"), Err(Refusal::Bad(what)) if what.contains("more than")));
    }

    #[test]
    fn what_triton_says_in_its_own_file_is_not_passed_over() {
        let (_dir, repository) =
            repository(&["a/1/x", "a/config.pbtxt", "b/1/x", "b/config.pbtxt", "b/candela.json"]);
        assert!(matches!(repository.model("a"), Err(Refusal::Bad(what)) if what.contains("config.pbtxt")));
        assert!(repository.model("b").is_ok());
        fs::write(repository.root.join("b/candela.json"), r#"{"versionPolicy": {"specific": [2]}}"#).unwrap();
        assert!(matches!(repository.model("b"), Err(Refusal::Bad(what)) if what.contains("version 2")));
        assert!(matches!(repository.model("c"), Err(Refusal::NotFound)));
    }
}
