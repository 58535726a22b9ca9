//! Whether what an agent says it builds for can really run on this machine.

use super::Finding;
use crate::agent::AgentConfig;
use std::path::Path;

/// Architectures that processors of another one run natively too: (processor, program).
const COMPATIBLE: [(&str, &str); 6] = [
    ("x86_64", "i686"),
    ("x86_64", "i586"),
    ("aarch64", "armv7l"),
    ("aarch64", "armhf"),
    ("aarch64", "armv6l"),
    ("powerpc64", "powerpc"),
];

/// How the kernel runs programs of an architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Emulation {
    /// It does not.
    None,
    /// It is registered but switched off.
    Disabled,
    /// By an interpreter that it opens anew in each root, so that sandboxes must have it.
    OpenedLate(String),
    /// By an interpreter that it has opened already.
    Fixed(String),
}

/// Checks every system that the agent offers. `proc` is where the proc filesystem is, `machine`
/// the architecture of this processor.
pub(super) fn check(config: &AgentConfig, proc: &Path, machine: &str) -> Vec<Finding> {
    let native = config.systems.iter().map(|system| check_native(system, machine));
    let emulated = config.emulated_systems.iter().map(|system| check_emulated(system, proc));
    native.chain(emulated).collect()
}

fn check_native(system: &str, machine: &str) -> Finding {
    let (architecture, kernel) = parts(system);
    if kernel != std::env::consts::OS {
        let explanation = format!("{system} is another operating system's");
        return Finding::fail("systems", explanation, format!("remove --system {system}"));
    }
    if architecture == machine || COMPATIBLE.contains(&(machine, architecture)) {
        return Finding::ok("systems", format!("{system} is native to this {machine} machine"));
    }
    let explanation = format!("this {machine} machine does not run {system} natively");
    Finding::fail("systems", explanation, format!("replace it by --emulated-system {system}"))
}

fn check_emulated(system: &str, proc: &Path) -> Finding {
    let (architecture, _) = parts(system);
    let install = || Some("apt-get install qemu-user-static binfmt-support".to_owned());
    match emulation(architecture, proc) {
        Emulation::None => {
            let explanation = format!("nothing runs programs for {system} on this machine");
            Finding::fail("systems", explanation, install())
        }
        Emulation::Disabled => Finding::fail(
            "systems",
            format!("the emulation of {system} is switched off"),
            "echo 1 > /proc/sys/fs/binfmt_misc/status".to_owned(),
        ),
        Emulation::OpenedLate(interpreter) => Finding::warn(
            "systems",
            format!("{system} runs by {interpreter}, which sandboxed builds do not see"),
            install(),
        ),
        Emulation::Fixed(interpreter) => {
            Finding::ok("systems", format!("{system} runs by {interpreter}"))
        }
    }
}

/// Finds how programs of an architecture are run (kernel `Documentation/admin-guide/binfmt-misc.rst`).
fn emulation(architecture: &str, proc: &Path) -> Emulation {
    let Ok(entries) = fs_err::read_dir(proc.join("sys/fs/binfmt_misc")) else {
        return Emulation::None;
    };
    let qemu = qemu_name(architecture);
    let mut found = Emulation::None;
    for entry in entries.flatten() {
        let Ok(text) = fs_err::read_to_string(entry.path()) else { continue };
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let Some(interpreter) = line("interpreter ").map(str::trim) else { continue };
        let program = interpreter.rsplit('/').next().unwrap_or_default();
        let named = entry.file_name() == format!("qemu-{qemu}").as_str()
            || program == format!("qemu-{qemu}")
            || program.starts_with(&format!("qemu-{qemu}-"));
        if !named {
            continue;
        }
        if text.lines().next() != Some("enabled") {
            found = Emulation::Disabled;
        } else if line("flags:").is_some_and(|flags| flags.contains('F')) {
            return Emulation::Fixed(interpreter.to_owned());
        } else {
            found = Emulation::OpenedLate(interpreter.to_owned());
        }
    }
    found
}

/// Returns what QEMU calls an architecture.
fn qemu_name(architecture: &str) -> &str {
    match architecture {
        "i686" | "i586" => "i386",
        "armv6l" | "armv7l" | "armhf" => "arm",
        "powerpc64le" => "ppc64le",
        "powerpc64" => "ppc64",
        "powerpc" => "ppc",
        other => other,
    }
}

/// Returns architecture and kernel of a system such as `x86_64-linux`.
fn parts(system: &str) -> (&str, &str) {
    system.split_once('-').unwrap_or((system, "linux"))
}

#[cfg(test)]
mod tests {
    use super::{super::Grade, *};

    #[test]
    fn native_systems_are_those_of_the_processor() {
        assert_eq!(check_native("x86_64-linux", "x86_64").grade, Grade::Ok);
        assert_eq!(check_native("i686-linux", "x86_64").grade, Grade::Ok);
        assert_eq!(check_native("x86_64-linux", "aarch64").grade, Grade::Fail);
        assert_eq!(check_native("x86_64-darwin", "x86_64").grade, Grade::Fail);
        let finding = check_native("aarch64-linux", "x86_64");
        assert_eq!(finding.mend.as_deref(), Some("replace it by --emulated-system aarch64-linux"));
    }

    #[test]
    fn emulated_systems_need_an_interpreter_that_sandboxes_have() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(check_emulated("aarch64-linux", proc.path()).grade, Grade::Fail);
        let dir = proc.path().join("sys/fs/binfmt_misc");
        fs_err::create_dir_all(&dir).unwrap();
        fs_err::write(dir.join("status"), "enabled\n").unwrap();
        assert_eq!(check_emulated("aarch64-linux", proc.path()).grade, Grade::Fail);
        let entry = dir.join("qemu-aarch64");
        for (text, grade) in [
            ("disabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: F\n", Grade::Fail),
            ("enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OC\n", Grade::Warn),
            ("enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: POCF\n", Grade::Ok),
        ] {
            fs_err::write(&entry, text).unwrap();
            assert_eq!(check_emulated("aarch64-linux", proc.path()).grade, grade, "{text}");
        }
        assert_eq!(check_emulated("powerpc64le-linux", proc.path()).grade, Grade::Fail);
        let text = "enabled\ninterpreter /run/binfmt/qemu-ppc64le\nflags: F\n";
        fs_err::write(dir.join("powerpc64le-linux"), text).unwrap();
        assert_eq!(check_emulated("powerpc64le-linux", proc.path()).grade, Grade::Ok);
    }
}
