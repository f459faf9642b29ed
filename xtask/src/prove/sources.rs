//! The digest of the files that a proof speaks of.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// SHA-256 over names and contents of the files below `paths` that git knows or would add, as they lie there now.
/// Text for people does not count.
pub(super) fn digest(root: &Path, paths: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"])
        .args(paths)
        .current_dir(root)
        .output()
        .context("failed to run git")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8(output.stdout).context("a path is not UTF-8")?;
    let mut names: Vec<_> =
        text.split('\0').filter(|name| !name.is_empty() && !name.ends_with(".md")).collect();
    names.sort_unstable();
    names.dedup();
    ensure!(!names.is_empty(), "no file below {paths:?}");
    let mut hash = Sha256::new();
    for name in names {
        // One that was deleted and not yet committed is not part of what was built.
        let Ok(content) = fs::read(root.join(name)) else { continue };
        hash.update(format!("{name}\0{}\0", content.len()));
        hash.update(content);
    }
    Ok(format!("sha256:{}", hex::encode(hash.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(root: &Path, arguments: &[&str]) -> Result<()> {
        let status = Command::new("git").args(arguments).current_dir(root).status()?;
        ensure!(status.success(), "git {arguments:?}");
        Ok(())
    }

    #[test]
    fn a_digest_changes_with_what_is_proved_and_with_nothing_else() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let root = folder.path();
        git(root, &["init", "--quiet"])?;
        fs::create_dir_all(root.join("a/target"))?;
        fs::write(root.join(".gitignore"), "target\n")?;
        fs::write(root.join("a/lib.rs"), "1")?;
        let now = || digest(root, &["a"]);
        let first = now()?;
        for (path, same) in [
            ("a/target/x", true),
            ("b.rs", true),
            ("a/README.md", true),
            ("a/more.rs", false),
            ("a/lib.rs", false),
        ] {
            let before = now()?;
            fs::write(root.join(path), "2")?;
            assert_eq!(now()? == before, same, "{path}");
        }
        fs::remove_file(root.join("a/more.rs"))?;
        fs::write(root.join("a/lib.rs"), "1")?;
        assert_eq!(now()?, first);
        git(root, &["add", "a"])?;
        assert_eq!(now()?, first, "whether it is committed does not matter");
        assert!(digest(root, &["nothing"]).is_err());
        Ok(())
    }
}
