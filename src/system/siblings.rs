//! The other processes of a job on this machine, as the system lists them.
use super::launch::Launch;
use std::collections::BTreeMap;

/// Variables that processes of one job have in common, and of two jobs not all of them.
const JOB: [&str; 6] =
    ["PMIX_NAMESPACE", "SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"];

/// The ranks of those other processes of this one's job, on this machine, that were stopped (SIGSTOP). None where the system
/// does not say.
pub fn stopped(own: Launch) -> Vec<usize> {
    stopped_of_job(own, &|name| std::env::var(name).ok())
}

#[cfg(target_os = "linux")]
fn stopped_of_job(own: Launch, job: &dyn Fn(&str) -> Option<String>) -> Vec<usize> {
    let is_stopped = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A program's name may have parentheses and blanks. A process that a debugger holds has a small t.
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    };
    let Ok(entries) = std::fs::read_dir("/proc") else { return vec![] };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let environment = |pid: u32| std::fs::read(format!("/proc/{pid}/environ")).ok();
    pids.filter(is_stopped).filter_map(|pid| rank_of(&environment(pid)?, own, job)).collect()
}

#[cfg(not(target_os = "linux"))]
fn stopped_of_job(_: Launch, _: &dyn Fn(&str) -> Option<String>) -> Vec<usize> {
    vec![]
}

/// The rank of a process with this environment, where it is another one of the job whose variables `job` has.
fn rank_of(environment: &[u8], own: Launch, job: &dyn Fn(&str) -> Option<String>) -> Option<usize> {
    let text = String::from_utf8_lossy(environment);
    let values = text.split('\0').filter_map(|entry| entry.split_once('='));
    let values: BTreeMap<&str, String> = values.map(|(name, value)| (name, value.to_string())).collect();
    let is_known = JOB.iter().any(|name| job(name).is_some());
    if !is_known || JOB.iter().any(|name| job(name).as_ref() != values.get(name)) {
        return None;
    }
    let launch = Launch::from_variables(&values).ok()??;
    let is_other = (launch.by, launch.size) == (own.by, own.size) && launch.rank != own.rank;
    is_other.then_some(launch.rank)
}

/// This machine's name.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.map_or_else(|_| "an unnamed machine".into(), |name| name.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::launch::Launcher;

    #[test]
    fn processes_of_one_job_are_known_by_what_they_have_in_common() {
        let own = Launch { by: Launcher::Mpi, rank: 0, size: 3, local_rank: 0, local_size: 3 };
        let job = |name: &str| (name == "PMIX_NAMESPACE").then(|| "77".to_string());
        let environment = |job: &str, rank: usize, size: usize| {
            format!("HOME=/\0PMIX_NAMESPACE={job}\0OMPI_COMM_WORLD_RANK={rank}\0OMPI_COMM_WORLD_SIZE={size}\0")
                .into_bytes()
        };
        assert_eq!(rank_of(&environment("77", 2, 3), own, &job), Some(2));
        assert_eq!(rank_of(&environment("77", 0, 3), own, &job), None);
        assert_eq!(rank_of(&environment("78", 2, 3), own, &job), None);
        assert_eq!(rank_of(&environment("77", 2, 4), own, &job), None);
        assert_eq!(rank_of(b"HOME=/\0", own, &|_| None), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_that_was_stopped_is_found() {
        let own = Launch { by: Launcher::Mpi, rank: 0, size: 2, local_rank: 0, local_size: 2 };
        let mut sleeping = std::process::Command::new("sleep");
        sleeping.arg("60").envs([("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")]);
        // Whatever this test itself was started by.
        for name in JOB {
            sleeping.env_remove(name);
        }
        let mut sleeping = sleeping.env("PMIX_NAMESPACE", "of this test").spawn().expect("sleep");
        let job = |name: &str| (name == "PMIX_NAMESPACE").then(|| "of this test".to_string());
        assert!(stopped_of_job(own, &job).is_empty());
        // SAFETY: the call has no effect but on the process.
        unsafe { libc::kill(sleeping.id() as i32, libc::SIGSTOP) };
        let found = (0..100).find(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            stopped_of_job(own, &job) == [1]
        });
        assert!(found.is_some());
        sleeping.kill().expect("killed");
        sleeping.wait().expect("ended");
    }
}
