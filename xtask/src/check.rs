//! `cargo xtask check`: the tree is as the style page wants it. Files are short, every Rust file belongs to a crate,
//! every crate takes the workspace's lints.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::image::workspace_root;

/// Past this many lines a file is said to be long.
const LONG: usize = 400;
/// Past this many the check fails.
const TOO_LONG: usize = 700;
const SOURCE_EXTENSIONS: [&str; 3] = ["rs", "go", "py"];

/// Checks the files that git knows or would add.
pub(crate) fn tree() -> Result<()> {
    let root = workspace_root()?;
    let files = files(&root)?;
    let mut faults = long_files(&root, &files)?;
    faults.extend(orphans(&root, &files)?);
    faults.extend(crates_without_lints(&root, &files)?);
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{}", faults.join("\n"))
}

fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("failed to run git")?;
    if !listed.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&listed.stderr).trim());
    }
    let names = String::from_utf8(listed.stdout).context("a file name is not UTF-8")?;
    Ok(names.lines().map(PathBuf::from).filter(|file| root.join(file).is_file()).collect())
}

fn has_extension(file: &Path, wanted: &[&str]) -> bool {
    file.extension().and_then(|e| e.to_str()).is_some_and(|e| wanted.contains(&e))
}

fn long_files(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| has_extension(file, &SOURCE_EXTENSIONS)) {
        let lines = fs::read_to_string(root.join(file))?.lines().count();
        if lines > TOO_LONG {
            faults.push(format!("{}: {lines} lines, at most {TOO_LONG}; split it by noun", file.display()));
        } else if lines > LONG {
            eprintln!("warning: {}: {lines} lines, better at most {LONG}", file.display());
        }
    }
    Ok(faults)
}

fn crates_without_lints(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| file.ends_with("Cargo.toml") && file.components().count() > 1) {
        let text = fs::read_to_string(root.join(file))?;
        let mut lines = text.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
        if lines.next().is_none_or(|line| line.replace(' ', "") != "workspace=true") {
            faults.push(format!("{}: lacks `[lints]` with `workspace = true`", file.display()));
        }
    }
    Ok(faults)
}

/// Rust files that no target reaches by `mod`: they look like code and are never compiled.
fn orphans(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let known: BTreeSet<_> = files.iter().filter(|file| has_extension(file, &["rs"])).cloned().collect();
    let mut reached = BTreeSet::new();
    for manifest in files.iter().filter(|file| file.ends_with("Cargo.toml")) {
        let folder = manifest.parent().unwrap_or_else(|| Path::new(""));
        let text = fs::read_to_string(root.join(manifest))?;
        for file in &known {
            let Ok(inside) = file.strip_prefix(folder) else { continue };
            // Where cargo looks by itself, or what the manifest names.
            if is_target(inside) || text.contains(&format!("path = \"{}\"", inside.display())) {
                reach(root, file, &known, &mut reached)?;
            }
        }
    }
    Ok(known.difference(&reached).map(|file| format!("{}: no `mod` names it", file.display())).collect())
}

/// Whether Cargo compiles this path of a package by itself.
fn is_target(inside: &Path) -> bool {
    let parts: Vec<_> = inside.iter().filter_map(|part| part.to_str()).collect();
    matches!(
        parts.as_slice(),
        ["build.rs"]
            | ["src", "lib.rs" | "main.rs"]
            | ["src", "bin", _]
            | ["src", "bin", _, "main.rs"]
            | ["tests" | "examples" | "benches", _]
            | ["tests" | "examples" | "benches", _, "main.rs"]
    )
}

fn reach(root: &Path, file: &Path, known: &BTreeSet<PathBuf>, reached: &mut BTreeSet<PathBuf>) -> Result<()> {
    if !reached.insert(file.to_owned()) {
        return Ok(());
    }
    let text =
        fs::read_to_string(root.join(file)).with_context(|| format!("failed to read {}", file.display()))?;
    let folder = file.parent().unwrap_or_else(|| Path::new(""));
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    // Modules of `lib.rs`, `main.rs`, `mod.rs` and of a target lie beside it, those of `foo.rs` in `foo/`.
    let beside = matches!(stem, "lib" | "main" | "mod" | "build") || targets_its_folder(file);
    let nested = folder.join(stem);
    for (name, path) in modules(&text) {
        let candidates = match path {
            Some(path) => vec![folder.join(path)],
            None => {
                let base = if beside { folder } else { nested.as_path() };
                vec![base.join(format!("{name}.rs")), base.join(&name).join("mod.rs")]
            }
        };
        for candidate in candidates.iter().filter(|candidate| known.contains(*candidate)) {
            reach(root, candidate, known, reached)?;
        }
    }
    Ok(())
}

fn targets_its_folder(file: &Path) -> bool {
    let folder = file.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    matches!(folder, Some("tests" | "examples" | "benches" | "bin"))
        && !file.iter().any(|part| part == "src" && folder != Some("bin"))
}

/// `mod name;` lines, each with the value of a `#[path]` above it.
fn modules(text: &str) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    let mut path = None;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("#[path") {
            path = rest.split('"').nth(1).map(str::to_owned);
        } else if let Some(name) = module_name(line) {
            found.push((name.to_owned(), path.take()));
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            path = None;
        }
    }
    found
}

fn module_name(line: &str) -> Option<&str> {
    let line = match line.strip_prefix("pub") {
        // `pub mod`, `pub(crate) mod`
        Some(rest) => rest.trim_start_matches(|c: char| c != ' ').trim_start(),
        None => line,
    };
    let name = line.strip_prefix("mod ")?.strip_suffix(';')?.trim();
    name.chars().all(|c| c.is_alphanumeric() || c == '_').then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository with these files.
    fn repository(files: &[(&str, &str)]) -> Result<(tempfile::TempDir, Vec<PathBuf>)> {
        let root = tempfile::tempdir()?;
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().context("a parent")?)?;
            fs::write(path, text)?;
        }
        Ok((root, files.iter().map(|(name, _)| PathBuf::from(name)).collect()))
    }

    #[test]
    fn a_file_that_no_mod_names_is_an_orphan() -> Result<()> {
        let (root, files) = repository(&[
            ("a/Cargo.toml", ""),
            (
                "a/src/lib.rs",
                "mod kept;\npub(crate) mod other;\n#[cfg(test)]\n#[path = \"far/away.rs\"]\nmod moved;",
            ),
            ("a/src/kept.rs", "mod deep;"),
            ("a/src/kept/deep.rs", ""),
            ("a/src/other/mod.rs", ""),
            ("a/src/far/away.rs", ""),
            ("a/src/deep.rs", ""),
            ("a/src/lost.rs", ""),
            ("a/tests/whole.rs", "mod support;"),
            ("a/tests/support/mod.rs", ""),
            ("b/Cargo.toml", "[[example]]\nname = \"hub\"\npath = \"support/hub_main.rs\""),
            ("b/support/hub_main.rs", ""),
        ])?;
        let found = orphans(root.path(), &files)?;
        assert_eq!(found, ["a/src/deep.rs: no `mod` names it", "a/src/lost.rs: no `mod` names it"]);
        Ok(())
    }

    #[test]
    fn only_files_past_the_upper_bound_fail() -> Result<()> {
        let (at, past) = ("\n".repeat(TOO_LONG), "\n".repeat(TOO_LONG + 1));
        let (root, files) = repository(&[("a.rs", &at), ("b.go", &past), ("c.json", &past)])?;
        assert_eq!(long_files(root.path(), &files)?, ["b.go: 701 lines, at most 700; split it by noun"]);
        Ok(())
    }

    #[test]
    fn a_crate_that_leaves_out_the_lints_is_named() -> Result<()> {
        let with = "[package]\n\n[lints]\nworkspace = true\n";
        let (root, files) =
            repository(&[("Cargo.toml", ""), ("a/Cargo.toml", with), ("b/Cargo.toml", "[package]")])?;
        assert_eq!(
            crates_without_lints(root.path(), &files)?,
            ["b/Cargo.toml: lacks `[lints]` with `workspace = true`"]
        );
        Ok(())
    }
}
