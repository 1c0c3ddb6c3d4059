//! Verifies a file and prints what it holds: `verify FILE`. With `verify FILE ETCDUTL` both are run in turn, and it prints how long each
//! took, the most anonymous memory that each had, and the ratio of the medians: below 1 this is the quicker one.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "that is what it is for")]

use std::error::Error;
use std::fs::File;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// How often each runs.
const ROUNDS: usize = 5;
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(2);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.as_slice() {
        [path] => verify(path),
        [path, etcdutl] => beside(path, etcdutl),
        _ => {
            eprintln!("error: usage: verify FILE [ETCDUTL]");
            return ExitCode::from(2);
        }
    };
    done.map_or_else(
        |error| {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

fn verify(path: &str) -> Result<(), Box<dyn Error>> {
    let snapshot = etcd_snapshot::verify(&File::open(path)?)?;
    println!("{}", serde_json::to_string_pretty(&snapshot)?);
    Ok(())
}

fn beside(path: &str, etcdutl: &str) -> Result<(), Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (mut our_memory, mut their_memory) = (0, 0);
    for _ in 0..ROUNDS {
        run(Command::new(&own).arg(path), &mut ours, &mut our_memory)?;
        run(Command::new(etcdutl).args(["snapshot", "status", path]), &mut theirs, &mut their_memory)?;
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("verify                  {ours:.3} s, {our_memory} KiB anonymous");
    println!("etcdutl snapshot status {theirs:.3} s, {their_memory} KiB anonymous");
    println!("ratio                   {:.2}", ours / theirs);
    Ok(())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs it to its end; adds the seconds, and raises the most anonymous memory that it was seen to have, in KiB.
fn run(command: &mut Command, seconds: &mut Vec<f64>, memory: &mut u64) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let seen = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = seen.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let size = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        *memory = (*memory).max(size.unwrap_or_default());
        std::thread::sleep(LOOK);
    };
    seconds.push(begun.elapsed().as_secs_f64());
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}
