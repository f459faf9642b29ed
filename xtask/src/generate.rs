//! `xtask gen` and `xtask check`: files generated from code.

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("this command is not built yet")
}

pub fn check(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("this command is not built yet")
}
