//! Writes manual pages and completions for the installed programs into a directory:
//! `cargo run --example pages -- DIRECTORY`. A release has them; the programs themselves don't.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use recado::cli;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1).ok_or("which directory?")?;
    let directory = Path::new(&directory);
    let programs = [
        ("recado-gateway", cli::Api1::command()),
        ("recado-agent", cli::Agent::command()),
        ("recado-broker", cli::Broker::command()),
        ("recado-sub", cli::ClientA::command()),
        ("recado-pub", cli::ClientB::command()),
    ];
    fs::create_dir_all(directory.join("man"))?;
    for (name, command) in programs {
        // The long version names the commit: a page that changes with each would not help anybody.
        let command = command
            .name(name)
            .bin_name(name)
            .version(env!("CARGO_PKG_VERSION"));
        page(&directory.join("man"), name, command.clone())?;
        for (shell, place) in [
            (Shell::Bash, "bash"),
            (Shell::Zsh, "zsh"),
            (Shell::Fish, "fish"),
        ] {
            let place = directory.join("completions").join(place);
            fs::create_dir_all(&place)?;
            generate_to(shell, &mut command.clone(), name, place)?;
        }
    }
    Ok(())
}

fn page(directory: &Path, name: &str, command: Command) -> Result<(), Box<dyn Error>> {
    let after = command.get_after_help().map(ToString::to_string);
    let date = std::env::var("RECADO_DATE").unwrap_or_default();
    let page = clap_mangen::Man::new(command).manual("recado").date(date);
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    // As it stands in `--help`, where it has columns.
    let after = after
        .unwrap_or_default()
        .replace('\\', "\\e")
        .replace('-', "\\-");
    writeln!(text, ".SH NOTES\n.nf\n{after}\n.fi")?;
    Ok(fs::write(directory.join(format!("{name}.1")), text)?)
}
