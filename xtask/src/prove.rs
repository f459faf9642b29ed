//! `cargo xtask prove`: the long proofs, one after the other. What each printed is kept under `docs/proofs/`, with the
//! digest of the sources that it speaks of; a proof that is there for the present sources is not run again, so an
//! interrupted run goes on where it was.

mod record;
mod sources;

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

use self::record::Record;
use crate::image::{target_dir, workspace_root};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the proofs whose name contains this; more than once: any of them.
    #[arg(long)]
    only: Vec<String>,
    /// Also those that are there for the present sources.
    #[arg(long)]
    again: bool,
    /// Say which proofs there are, and which are there for the present sources; run none.
    #[arg(long)]
    list: bool,
}

/// What every proof on the operator speaks of.
const OPERATOR: &[&str] = &["Cargo.lock", "Cargo.toml", "crds", "operator", "wire", "tests/src"];
/// What a proof on the server alone speaks of.
const SERVER: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "server/Cargo.toml",
    "server/engine",
    "server/models",
    "server/src",
    "wire",
];

/// One program of proofs; each of its tests is a proof of its own.
struct Suite {
    name: &'static str,
    tool: Tool,
    /// Paths, from the repository's root, that decide what the proof shows: what it speaks of, and the proof itself.
    subject: &'static [&'static str],
    sources: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy)]
enum Tool {
    /// A test program of the crate `tests`.
    Cargo,
    /// The end-to-end tests of the test cluster itself.
    Go,
}

/// What fails fastest comes first.
const SUITES: [Suite; 5] = [
    Suite {
        name: "simulation",
        tool: Tool::Cargo,
        subject: OPERATOR,
        sources: &["tests/tests/simulation"],
        env: &[],
    },
    Suite {
        name: "control_plane",
        tool: Tool::Cargo,
        subject: OPERATOR,
        sources: &["tests/tests/control_plane", "tests/cluster", "manifests"],
        env: &[],
    },
    Suite {
        name: "e2e",
        tool: Tool::Cargo,
        subject: OPERATOR,
        sources: &[
            "tests/tests/e2e",
            "tests/cluster",
            "manifests",
            "server",
            "xtask/src/image",
            "xtask/src/image.rs",
        ],
        env: &[],
    },
    Suite {
        name: "cluster",
        tool: Tool::Go,
        subject: &[],
        sources: &["tests/cluster"],
        env: &[("CANDELA_CLUSTER_E2E_ADDONS", "1")],
    },
    Suite {
        name: "endurance",
        tool: Tool::Cargo,
        subject: SERVER,
        sources: &["server/tests/endurance"],
        env: &[],
    },
];

/// One test to run.
struct Proof<'a> {
    suite: &'a Suite,
    /// As the test runner calls it.
    test: String,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let root = workspace_root()?;
    let folder = root.join("docs/proofs");
    let (mut shown, mut kept, mut failed) = (0, 0, Vec::new());
    for suite in SUITES.iter().filter(|suite| suite.is_asked_for(&args.only)) {
        let digest = sources::digest(&root, &[suite.subject, suite.sources].concat())?;
        for test in suite.tests(&root)? {
            let proof = Proof { suite, test };
            let name = proof.name();
            if !args.only.is_empty() && !args.only.iter().any(|part| name.contains(part)) {
                continue;
            }
            let path = folder.join(format!("{name}.txt"));
            let present = Record::source_of(&path)?.is_some_and(|source| source == digest);
            if args.list {
                say(&format!("{} {name}\n", if present { "proved" } else { "open  " }))?;
                continue;
            }
            if present && !args.again {
                say(&format!("== {name}: proved for these sources, see docs/proofs/{name}.txt\n"))?;
                kept += 1;
                continue;
            }
            say(&format!("== {name}\n"))?;
            match proof.run(&root, &digest)? {
                (true, record) => {
                    fs::create_dir_all(path.parent().unwrap_or(&folder))?;
                    record.write(&path)?;
                    say(&format!("== {name}: proved in {:.0} s, docs/proofs/{name}.txt\n", record.seconds))?;
                    shown += 1;
                }
                (false, record) => {
                    let log = target_dir()?.join("logs").join(format!("{}.txt", name.replace('/', "-")));
                    fs::create_dir_all(log.parent().unwrap_or(&folder))?;
                    record.write(&log)?;
                    say(&format!("== {name}: FAILED after {:.0} s, {}\n", record.seconds, log.display()))?;
                    failed.push(name);
                }
            }
        }
    }
    if !args.list {
        say(&format!("{shown} proofs ran, {kept} were there for these sources, {} failed\n", failed.len()))?;
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

impl Suite {
    /// False if each of the names wanted begins with another suite's: then this one need not be built.
    fn is_asked_for(&self, only: &[String]) -> bool {
        let elsewhere = |part: &String| {
            SUITES.iter().any(|other| other.name != self.name && part.starts_with(other.name))
        };
        only.is_empty() || !only.iter().all(elsewhere)
    }

    fn command(&self, root: &Path, test: Option<&str>) -> Result<Command> {
        let mut command = match self.tool {
            Tool::Cargo => {
                let mut command = Command::new("cargo");
                command.args(["test", "--quiet", "--release", "--workspace", "--test", self.name, "--"]);
                match test {
                    Some(test) => command.args(["--exact", test, "--nocapture", "--include-ignored"]),
                    None => command.args(["--list", "--include-ignored"]),
                };
                command.current_dir(root);
                command
            }
            Tool::Go => {
                let mut command = Command::new("go");
                match test {
                    Some(test) => {
                        command.args(["test", "-v", "-count=1", "-timeout=30m", "-run", &format!("^{test}$")])
                    }
                    None => command.args(["test", "-list", "."]),
                };
                command.arg("./e2e").current_dir(root.join("tests/cluster"));
                command.env("CANDELA_CLUSTER_E2E", target_dir()?.join("cluster/candela-cluster"));
                command
            }
        };
        command.env("CANDELA_PROVE", "1").envs(self.env.iter().copied()).stdin(Stdio::null());
        Ok(command)
    }

    /// Names of the tests, in the order of the runner.
    fn tests(&self, root: &Path) -> Result<Vec<String>> {
        let mut command = self.command(root, None)?;
        let output = command.stderr(Stdio::inherit()).output().context("failed to list the proofs")?;
        ensure!(output.status.success(), "the proofs of {} do not build", self.name);
        let text = String::from_utf8_lossy(&output.stdout);
        let names = text.lines().filter_map(|line| match self.tool {
            Tool::Cargo => line.strip_suffix(": test"),
            Tool::Go => Some(line).filter(|line| line.starts_with("Test")),
        });
        let names: Vec<_> = names.map(str::to_owned).collect();
        if names.is_empty() {
            bail!("{} has no tests:\n{text}", self.name);
        }
        Ok(names)
    }
}

impl Proof<'_> {
    fn name(&self) -> String {
        format!("{}/{}", self.suite.name, self.test.replace("::", "."))
    }

    /// Runs to the end, showing what it prints; whether it passed, and what is to be kept.
    fn run(&self, root: &Path, digest: &str) -> Result<(bool, Record)> {
        let started = Instant::now();
        let mut command = self.suite.command(root, Some(&self.test))?;
        let said = record::shown(&command, root, self.suite.env);
        // Both streams into one, in their order.
        let (reader, writer) = io::pipe()?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn().context("failed to start the proof")?;
        // It holds the pipe's ends for writing, and the reader would wait for them.
        drop(command);
        let mut output = String::new();
        let mut lines = BufReader::new(reader);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line).into_owned();
            say(&text)?;
            output.push_str(&text);
            line.clear();
        }
        let passed = child.wait()?.success() && self.ran(&output);
        let record = Record::new(root, self.name(), digest, said, started.elapsed(), &output)?;
        Ok((passed, record))
    }

    /// A runner is content with no test at all, and with one that skipped itself.
    fn ran(&self, output: &str) -> bool {
        match self.suite.tool {
            Tool::Cargo => output.contains("test result: ok. 1 passed"),
            Tool::Go => output.contains(&format!("--- PASS: {}", self.test)),
        }
    }
}

fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// The file's text, if there is a file.
fn read_if_there(path: &Path) -> Result<Option<String>> {
    match File::open(path) {
        Ok(file) => Ok(Some(io::read_to_string(file)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
    }
}
