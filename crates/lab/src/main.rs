//! The command `lab`: see `lab --help`.

use std::process::{Command as Process, ExitCode, ExitStatus, Stdio};

use anyhow::Result;
use clap::Parser as _;
use lab::cli::{Cli, Command, Up};
use lab::image::{self, Image};
use lab::{Lab, Spec, account, build, output, prober};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let machine = |index: u8| Lab::attach()?.machine(index);
    match cli.command {
        Command::Build { versions } => {
            build::all(if versions.is_empty() { &build::DEFAULT_VERSIONS } else { &versions })?;
            output::say("built");
        }
        Command::Up(Up { control_planes, workers, version, upgrades_to, audit, processor }) => {
            Lab::up(Spec { control_planes, workers, version, upgrades_to, audit, processor })?;
        }
        Command::Down => Lab::down()?,
        Command::On { machine: index, argv } => return pass(&mut machine(index)?.command(argv)?),
        Command::Client { argv } => return pass(&mut Lab::attach()?.client(argv)),
        Command::Crash(one) => machine(one.machine)?.crash()?,
        Command::Start(one) => machine(one.machine)?.start()?,
        Command::Stop(one) => machine(one.machine)?.stop()?,
        Command::Cut(one) => machine(one.machine)?.cut()?,
        Command::Heal(one) => machine(one.machine)?.heal()?,
        Command::Load { archive } => Lab::attach()?.load_image(&archive)?,
        Command::Pause(process) => machine(process.machine)?.pause(&process.name)?,
        Command::Resume(process) => machine(process.machine)?.resume(&process.name)?,
        Command::Voters(options) => prober::voters::run(&options).map(drop)?,
        Command::Memory(options) => prober::memory::run(&options).map(drop)?,
        Command::Account { folder } => output::answer(account::text(&folder)?),
        Command::Image { reference, out, binary, files, user } => {
            let mut contents = Image::of_binary(&binary)?;
            contents.user = user;
            for (inside, file) in files {
                contents.add(&inside, &file, 0o644)?;
            }
            output::answer(image::write(&reference, &out, &contents)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command with our own stdin, stdout and stderr, and ends as it does.
fn pass(command: &mut Process) -> Result<ExitCode> {
    Ok(code_of(command.stdin(Stdio::inherit()).status()?))
}

fn code_of(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
