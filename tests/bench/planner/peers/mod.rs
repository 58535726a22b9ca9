//! Other programs that queue, started by us, asked to do the same, and ended by us.

mod beanstalkd;
mod hyperqueue;
mod ninja;
mod postgres;

pub(crate) use beanstalkd::beanstalkd;
pub(crate) use hyperqueue::hyperqueue;
pub(crate) use ninja::ninja;
pub(crate) use postgres::postgres;

use rustix::process::{Pid, Signal, kill_process};
use std::process::{Child, Command};

/// What a peer came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// How many it allocated and completed per second.
    pub(crate) per_s: f64,
    /// With how many clients at a time.
    pub(crate) clients: usize,
}

/// A server that is asked to end with its value.
struct Server(Child);

impl Server {
    /// Starts a server; says why it cannot be.
    fn start(command: &mut Command) -> Result<Self, String> {
        command
            .spawn()
            .map(Server)
            .map_err(|error| format!("{}: {error}", command.get_program().display()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.0.id().try_into().unwrap()).unwrap();
        // It may have ended by itself.
        kill_process(pid, Signal::INT).ok();
        self.0.wait().unwrap();
    }
}

/// Returns what a program says of its version, or that it is not there.
pub(crate) fn version(command: &str, argument: &str) -> String {
    match output(Command::new(command).arg(argument)) {
        Ok(text) => text.lines().next().unwrap_or_default().to_owned(),
        Err(_) => format!("no {command}"),
    }
}

/// Runs a command to its end and returns what it prints; says why it did not work.
fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().display().to_string();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    let text = String::from_utf8(output.stderr).unwrap();
    Err(format!("{name}: {}", text.lines().last().unwrap_or_default()))
}
