//! Jobs of several processes.
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Whether `mpirun` is there; says where it is not.
pub fn has_mpirun() -> bool {
    let found = Command::new("mpirun").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        assert!(std::env::var_os("REQUIRE_MPI").is_none(), "no mpirun");
        eprintln!("no mpirun: nothing is tested");
    }
    found
}

/// Processes that run.
pub struct Job {
    child: Child,
    /// What their command lines have in common.
    mark: String,
}

/// A job that has ended.
pub struct Ended {
    pub status: Option<i32>,
    pub said: String,
    /// What it printed on standard output.
    pub printed: Vec<u8>,
    pub took: Duration,
}

impl Job {
    /// Starts `size` processes of `command`.
    pub fn start(size: usize, command: &Command) -> Self {
        Self::start_through("exec \"$@\"", size, command)
    }

    /// Starts `size` processes of `command`, each through these lines of shell, which have the command as their arguments.
    pub fn start_through(shell: &str, size: usize, command: &Command) -> Self {
        let mut mpirun = Command::new("mpirun");
        mpirun.args(["--oversubscribe", "--allow-run-as-root", "-n", &size.to_string(), "sh", "-c", shell, "sh"]);
        mpirun.arg(command.get_program()).args(command.get_args());
        mpirun.env_remove("RUST_LOG");
        if let Some(folder) = command.get_current_dir() {
            mpirun.current_dir(folder);
        }
        mpirun.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        // Short beside what the processes compute.
        let words: Vec<String> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let mark = words.iter().find(|word| word.starts_with("output=")).cloned().unwrap_or_default();
        let child = mpirun.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mpirun");
        Self { child, mark }
    }

    /// `mpirun`'s process.
    pub fn launcher(&self) -> i32 {
        self.child.id() as i32
    }

    /// The process of this rank, if it runs.
    pub fn process(&self, rank: usize) -> Option<i32> {
        let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
        let has = |pid: &i32, file: &str, word: &str| {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            text.split(|byte| *byte == 0).any(|part| part == word.as_bytes())
        };
        let entries = std::fs::read_dir("/proc").expect("/proc").filter_map(|entry| entry.ok());
        let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.find(|pid| has(pid, "environ", &wanted) && has(pid, "cmdline", &self.mark))
    }

    /// Waits until the job ends.
    pub fn end(self) -> Ended {
        let started = Instant::now();
        let output = self.child.wait_with_output().expect("output");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("panicked"), "{said}");
        Ended { status: output.status.code(), said, printed: output.stdout, took: started.elapsed() }
    }
}

impl Ended {
    /// The errors that the program, not its launcher, has said.
    pub fn errors(&self) -> Vec<&str> {
        self.said.lines().filter(|line| line.starts_with("error: ")).collect()
    }

    /// A job that must succeed.
    pub fn succeeded(self) -> String {
        assert_eq!(self.status, Some(0), "{}", self.said);
        self.said
    }
}
