//! `hermes-gateway install` and `uninstall`: write our units, tell the service manager, say the true result.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Failure, Which};
use crate::exit::Exit;
use crate::service::directories::Scope;
use crate::service::systemd::{self, ServiceManager};
use crate::service::units::{self, Ownership, UnitFile, UnitNames};

/// Where the journal's catalog files of an administrator are.
const CATALOGS: &str = "/usr/local/lib/systemd/catalog";

#[derive(Debug, Args)]
pub struct Install {
    #[command(flatten)]
    which: Which,
    /// Let the HTTP socket listen here instead (needed for a named instance to be reached by TCP)
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Enable, but do not start
    #[arg(long)]
    no_start: bool,
    /// Print the files instead, for packages and configuration management
    #[arg(long)]
    print: bool,
    /// Replace files that somebody else wrote or changed; they are kept beside, as NAME.before
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub struct Uninstall {
    #[command(flatten)]
    which: Which,
    /// Remove our files even if somebody changed them
    #[arg(long)]
    force: bool,
}

pub async fn execute(install: &Install) -> Result<Exit, Failure> {
    let which = &install.which;
    let files = files(which, install.listen)?;
    if install.print {
        for file in &files {
            println!("# {}\n{}", file.name, file.text);
        }
        return Ok(Exit::Ok);
    }
    let manager = ServiceManager::connect(which.scope()).await?;
    let directory = unit_directory(which.scope())?;
    // All are looked at before any is written.
    for file in &files {
        check_free(&directory.join(&file.name), file, install.force)?;
    }
    for file in &files {
        let path = directory.join(&file.name);
        write(&path, &file.marked(), install.force)?;
        println!("wrote {}", path.display());
    }
    if which.scope() == Scope::System {
        write_catalog()?;
    }
    let units = UnitNames::of(&which.instance);
    manager.reload().await?;
    manager.enable(&units.all()).await?;
    println!("enabled {}", units.all().join(", "));
    if which.scope() == Scope::User {
        keep_user_manager().await;
    }
    if install.no_start {
        return Ok(Exit::Ok);
    }
    // The service wants its sockets, so they come first; and if one cannot be had, it is the service that says why.
    let started = manager.start(&units.service).await;
    let report = manager.report(&units.service).await?;
    let result = format!("{}: {} ({})\n  {}", report.unit, report.active_state, report.sub_state, report.status_text);
    match started {
        Ok(()) if report.active_state == "active" => {
            println!("started {result}");
            Ok(Exit::Ok)
        }
        Ok(()) => Err(Failure::text(result)),
        Err(e) => Err(Failure::text(format!("{result}\n{e}"))),
    }
}

pub async fn execute_uninstall(uninstall: &Uninstall) -> Result<Exit, Failure> {
    let which = &uninstall.which;
    let (units, directory) = (UnitNames::of(&which.instance), unit_directory(which.scope())?);
    let drop_in = directory.join(format!("{}.d/listen.conf", units.http));
    let mut paths: Vec<_> = files(which, None)?.iter().map(|file| directory.join(&file.name)).collect();
    let manager = ServiceManager::connect(which.scope()).await?;
    if !paths.iter().any(|path| path.exists()) {
        println!("hermes-gateway ({}) is not installed in {}", which.instance, directory.display());
        return Ok(Exit::Ok);
    }
    for path in paths.iter().chain([&drop_in]) {
        check_ours(path, uninstall.force)?;
    }
    // The service first: a socket that goes while the service runs takes the service's clients with it.
    for unit in units.all().iter().rev() {
        manager.stop(unit).await?;
    }
    manager.disable(&units.all()).await?;
    if !which.instance.is_default() {
        let others = enabled_instances(&directory);
        if !others.is_empty() {
            println!("kept the templates for {}", others.join(", "));
            paths.clear();
        }
    }
    paths.push(drop_in.clone());
    for path in paths.iter().filter(|path| path.exists()) {
        fs::remove_file(path).map_err(|e| at(path, &e))?;
        println!("removed {}", path.display());
    }
    if let Some(parent) = drop_in.parent() {
        // Only if it is empty: other drop-ins in it are the user's.
        let _in_use = fs::remove_dir(parent);
    }
    manager.reload().await?;
    println!("stopped and uninstalled; configuration and state were left as they are");
    Ok(Exit::Ok)
}

fn files(which: &Which, listen: Option<SocketAddr>) -> Result<Vec<UnitFile>, Failure> {
    let mut files = units::files(which.scope(), &which.instance, &std::env::current_exe()?);
    files.extend(listen.map(|address| units::listen_drop_in(&which.instance, address)));
    Ok(files)
}

fn unit_directory(scope: Scope) -> Result<PathBuf, Failure> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    match scope {
        Scope::System => Ok("/etc/systemd/system".into()),
        Scope::User => absolute("XDG_CONFIG_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".config")))
            .map(|base| base.join("systemd/user"))
            .ok_or_else(|| Failure::text("HOME is not set, so there is no place for user units")),
    }
}

/// Named instances that start at login or boot: the links that `enable` made. Theirs are the templates, too.
fn enabled_instances(directory: &Path) -> Vec<String> {
    let wants = ["default.target.wants", "multi-user.target.wants"].map(|target| directory.join(target));
    let links = wants.iter().filter_map(|target| fs::read_dir(target).ok()).flatten().flatten();
    let names = links.map(|link| link.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("hermes-gateway@") && name.ends_with(".service")).collect()
}

/// Refuses to overwrite what is not ours, and shows what is different.
fn check_free(path: &Path, file: &UnitFile, force: bool) -> Result<(), Failure> {
    let Some(found) = read(path)? else { return Ok(()) };
    if force || units::ownership(&found) == Ownership::Ours {
        return Ok(());
    }
    let (ours, theirs): (Vec<_>, Vec<_>) = (file.text.lines().collect(), found.lines().skip(1).collect());
    let only = |sign: char, these: &[&str], those: &[&str]| -> Vec<String> {
        these.iter().filter(|line| !those.contains(*line)).map(|line| format!("  {sign} {line}")).collect()
    };
    let difference = [only('-', &theirs, &ours), only('+', &ours, &theirs)].concat().join("\n");
    Err(Failure::text(format!(
        "{} was written or changed by somebody else; what would change:\n{difference}\n\
         keep your changes in a drop-in ('systemctl edit'), or use --force to replace the file",
        path.display()
    )))
}

fn check_ours(path: &Path, force: bool) -> Result<(), Failure> {
    match read(path)?.map(|text| units::ownership(&text)) {
        None | Some(Ownership::Ours) => Ok(()),
        Some(Ownership::Edited) if force => Ok(()),
        Some(Ownership::Edited) => Err(Failure::text(format!(
            "{} was changed since it was installed; use --force to remove it",
            path.display()
        ))),
        Some(Ownership::Foreign) => Err(Failure::text(format!("{} is not ours and stays", path.display()))),
    }
}

fn read(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(at(path, &e)),
    }
}

/// Complete or absent, never half-written.
fn write(path: &Path, text: &str, keep_old: bool) -> Result<(), Failure> {
    let failed = |e: std::io::Error| at(path, &e);
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(failed)?;
    if keep_old && read(path)?.is_some_and(|old| units::ownership(&old) != Ownership::Ours) {
        let mut kept = path.as_os_str().to_owned();
        kept.push(".before");
        fs::rename(path, kept).map_err(failed)?;
    }
    let mode = fs::Permissions::from_mode(0o644);
    let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(directory).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

fn at(path: &Path, error: &std::io::Error) -> Failure {
    Failure::text(format!("{}: {error}", path.display()))
}

/// Explanations for `journalctl -x`; the journal reads them from the machine's directories only.
fn write_catalog() -> Result<(), Failure> {
    let path = Path::new(CATALOGS).join("hermes-gateway.catalog");
    write(&path, units::CATALOG, false)?;
    let updated = std::process::Command::new("journalctl").arg("--update-catalog").status();
    match updated {
        Ok(status) if status.success() => println!("wrote {}", path.display()),
        Ok(status) => eprintln!("journalctl --update-catalog ended with {status}; 'journalctl -x' will explain less"),
        Err(e) => eprintln!("journalctl cannot be run ({e}); 'journalctl -x' will explain less"),
    }
    Ok(())
}

/// Without lingering a user's services end with the last login.
async fn keep_user_manager() {
    match systemd::enable_linger().await {
        Ok(()) => println!("lingering is on: the service runs without a login"),
        Err(e) => eprintln!(
            "note: lingering could not be switched on ({e}), so the service ends with your last login; \
             'sudo loginctl enable-linger' with your user name changes that"
        ),
    }
}
