//! `simplon man`: manual pages, from what the command line says of itself.

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::{Man, generate_to};

use super::{Cli, Failure, print};

/// Prints the page of `simplon`, or writes it and those of all commands into `dir`, which is made.
pub(super) fn man(dir: Option<&Path>) -> Result<(), Failure> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        Man::new(command())
            .render(&mut page)
            .map_err(Failure::new)?;
        return print(&page).map(drop);
    };
    fs::create_dir_all(dir)
        .and_then(|()| generate_to(command(), dir))
        .map_err(|error| Failure::new(format_args!("{}: {error}", dir.display())))
}

/// The command line, without what depends on the machine: pages are made on one for others.
fn command() -> Command {
    Cli::command()
        .version(env!("CARGO_PKG_VERSION"))
        .about("a userspace IPsec gateway")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_is_named_on_the_first() {
        let dir = tempfile::TempDir::new().expect("dir");
        assert!(man(Some(dir.path())).is_ok());
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("a page");
        let first = read("simplon.1");
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let page = read(&format!("simplon-{name}.1"));
            assert!(page.contains(".SH DESCRIPTION"), "{name}: {page}");
            // As roff has it: a hyphen that is none is written with a backslash.
            let entry = format!("simplon\\-{}", name.replace('-', "\\-"));
            assert!(first.contains(&entry), "{name}: {first}");
        }
        let nested = read("simplon-state-init.1");
        assert!(nested.contains("config"), "{nested}");
    }
}
