//! What is kept of a proof: where, of what and how it was run, and all that it printed.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};

use super::read_if_there;

pub(super) struct Record {
    pub(super) seconds: f64,
    text: String,
}

impl Record {
    pub(super) fn new(
        root: &Path,
        name: String,
        digest: &str,
        command: String,
        took: Duration,
        output: &str,
    ) -> Result<Self> {
        let seconds = took.as_secs_f64();
        let commit = first_line(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root))?;
        let changes = Command::new("git")
            .args(["status", "--porcelain", "--", ".", ":!docs/proofs"])
            .current_dir(root)
            .output()?
            .stdout;
        let state = if changes.is_empty() { "" } else { " with changes that were not committed" };
        let date = first_line(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]))?;
        let text = format!(
            "proof:   {name}\nsource:  {digest}\ncommit:  {commit}{state}\ndate:    {date}\nmachine: {}\n\
             command: {command}\nseconds: {seconds:.1}\n\n{}",
            machine()?,
            // Where the checkout and a test's temporary files lie is nobody's business.
            output
                .replace(&format!("{}/", root.display()), "")
                .replace(&root.display().to_string(), ".")
                .replace(&format!("{}/", std::env::temp_dir().display()), "$TMPDIR/"),
        );
        Ok(Self { seconds, text })
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, &self.text).with_context(|| format!("failed to write {}", path.display()))
    }

    /// The digest in a record; none where there is no record.
    pub(super) fn source_of(path: &Path) -> Result<Option<String>> {
        let Some(text) = read_if_there(path)? else { return Ok(None) };
        Ok(text.lines().find_map(|line| line.strip_prefix("source:")).map(|digest| digest.trim().to_owned()))
    }
}

/// A command as a person would type it in the repository's root.
pub(super) fn shown(command: &Command, root: &Path, env: &[(&str, &str)]) -> String {
    let mut words = vec!["CANDELA_PROVE=1".to_owned()];
    words.extend(env.iter().map(|(name, value)| format!("{name}={value}")));
    words.push(command.get_program().to_string_lossy().into_owned());
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    match command.get_current_dir().and_then(|dir| dir.strip_prefix(root).ok()) {
        Some(dir) if !dir.as_os_str().is_empty() => format!("(cd {}; {})", dir.display(), words.join(" ")),
        _ => words.join(" "),
    }
}

fn first_line(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("failed to run {name}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// What figures depend on: cores, processor, memory, kernel.
fn machine() -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let processor = field("/proc/cpuinfo", "model name");
    let memory: u64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let kernel = first_line(Command::new("uname").arg("-r"))?;
    Ok(format!("{cores} cores of {processor}, {} GiB, Linux {kernel}", memory >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_tells_its_source_and_not_where_the_checkout_lies() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let root = folder.path();
        let temporary = std::env::temp_dir().join("y");
        let output = format!("{}\n1000 sequences\n{}/target/x\n", temporary.display(), root.display());
        let record = Record::new(
            root,
            "a/b".to_owned(),
            "sha256:12",
            "x".to_owned(),
            Duration::from_secs(2),
            &output,
        )?;
        assert!(!record.text.contains(&root.display().to_string()), "{}", record.text);
        assert!(record.text.contains("seconds: 2.0"), "{}", record.text);
        assert!(record.text.ends_with("\n\n$TMPDIR/y\n1000 sequences\ntarget/x\n"), "{}", record.text);
        let path = root.join("b.txt");
        assert_eq!(Record::source_of(&path)?, None);
        record.write(&path)?;
        assert_eq!(Record::source_of(&path)?.as_deref(), Some("sha256:12"));
        Ok(())
    }

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let root = Path::new("/somewhere");
        let mut command = Command::new("go");
        command.args(["test", "./e2e"]).current_dir(root.join("tests/cluster"));
        assert_eq!(
            shown(&command, root, &[("A", "1")]),
            "(cd tests/cluster; CANDELA_PROVE=1 A=1 go test ./e2e)"
        );
        command.current_dir(root);
        assert_eq!(shown(&command, root, &[]), "CANDELA_PROVE=1 go test ./e2e");
    }
}
