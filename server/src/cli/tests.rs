//! Arguments, and the page of them.

use std::fmt::Write as _;

use clap::CommandFactory;

use super::*;

/// `docs/reference/server-flags.md`, below its mark.
fn flags() -> String {
    let mut out = String::new();
    for verb in Cli::command().get_subcommands_mut() {
        write!(out, "\n## `candela-server {}`\n\n{}\n", verb.get_name(), about(verb.get_about())).unwrap();
        out.push_str("\n| argument | if absent | |\n| --- | --- | --- |\n");
        for arg in verb.get_arguments() {
            let Some(long) = arg.get_long().filter(|long| *long != "help") else { continue };
            let value = arg.get_value_names().unwrap_or_default().join(" ");
            let default: Vec<_> =
                arg.get_default_values().iter().map(|value| format!("`{}`", value.display())).collect();
            let values = arg.get_possible_values();
            let values: Vec<_> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
            let one_of =
                if values.is_empty() { String::new() } else { format!(" One of {}.", values.join(", ")) };
            let about = about(arg.get_long_help().or_else(|| arg.get_help()));
            writeln!(out, "| `--{long} {value}` | {} | {about}{one_of} |", default.join(" ")).unwrap();
        }
    }
    out
}

/// As a sentence on one line.
fn about(text: Option<&clap::builder::StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default().replace('\n', " ").replace('|', "\\|");
    if text.ends_with('.') { text } else { format!("{text}.") }
}

#[test]
fn the_page_of_arguments_lists_each_of_them() {
    const MARK: &str =
        "<!-- from here on written by the test of server/src/cli/tests.rs, UPDATE_EXPECT=1 -->\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/server-flags.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (head, have) = page.split_once(MARK).expect("the page has the mark");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, format!("{head}{MARK}{}", flags())).unwrap();
        return;
    }
    assert_eq!(have, flags(), "run the test with UPDATE_EXPECT=1");
}

#[test]
fn arguments_have_the_documented_defaults() {
    let cli = Cli::try_parse_from(["candela-server", "serve"]).unwrap();
    let Verb::Serve(args) = cli.command else { unreachable!("the verb was serve") };
    assert_eq!(args.shared.config, Path::new("/etc/candela/server.json"));
    assert_eq!(args.listen.port(), 8080);
    assert_eq!(args.shared.internal_listen.port(), 9090);
    let refused: [&[&str]; 3] =
        [&["--max-queue", "0"], &["--model", "m.gguf", "--config", "server.json"], &["--served-name", "m"]];
    for arguments in refused {
        assert!(Cli::try_parse_from([&["candela-server", "serve"], arguments].concat()).is_err());
    }
}
