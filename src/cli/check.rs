//! `hermes-gateway check`: the same code that a start runs.

use clap::Args;

use super::{Failure, Which};
use crate::config;
use crate::exit::Exit;

#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    which: Which,
    /// Print a file with every key and its default instead
    #[arg(long)]
    default: bool,
}

pub fn execute(check: &Check) -> Result<Exit, Failure> {
    if check.default {
        print!("{}", config::DEFAULT_FILE);
        return Ok(Exit::Ok);
    }
    let places = check.which.places()?;
    match config::load(&places) {
        Ok(_) if places.config_file.exists() => println!("{}: ok", places.config_file.display()),
        Ok(_) => println!("{}: not there, so the defaults hold; ok", places.config_file.display()),
        Err(problems) => {
            return Err(Failure { exit: Exit::Config, message: format!("the configuration is wrong:\n{problems}") });
        }
    }
    Ok(Exit::Ok)
}
