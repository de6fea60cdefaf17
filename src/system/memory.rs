//! The main memory: what is free, and what this process has; in bytes, and only where it can be known.

#[cfg(target_os = "linux")]
pub use linux::{free_bytes, peak_bytes, resident_bytes};
#[cfg(not(target_os = "linux"))]
pub use others::{free_bytes, peak_bytes, resident_bytes};

#[cfg(target_os = "linux")]
mod linux {
    /// What this process may still take: the least of what the machine has free and what a limit of its address space
    /// (`ulimit -v`) leaves. Address space that is reserved and not used counts as free: it is for allocations to come.
    pub fn free_bytes() -> Option<u64> {
        [kilobytes("/proc/meminfo", "MemAvailable:"), within_limit()].into_iter().flatten().min()
    }

    /// What this process has now.
    pub fn resident_bytes() -> Option<u64> {
        kilobytes("/proc/self/status", "VmRSS:")
    }

    /// The most that this process has had so far.
    pub fn peak_bytes() -> Option<u64> {
        kilobytes("/proc/self/status", "VmHWM:")
    }

    fn within_limit() -> Option<u64> {
        let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
        let limit: u64 = limit.split_whitespace().next()?.parse().ok()?;
        Some(limit.saturating_sub(resident_bytes()?))
    }

    /// A line such as `VmHWM:  1234 kB` of the kernel's files, in bytes.
    fn kilobytes(file: &str, name: &str) -> Option<u64> {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    }
}

#[cfg(not(target_os = "linux"))]
mod others {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, get_current_pid};

    /// What the machine has free.
    pub fn free_bytes() -> Option<u64> {
        let mut system = System::new();
        system.refresh_memory();
        Some(system.available_memory()).filter(|bytes| *bytes > 0)
    }

    /// What this process has now.
    pub fn resident_bytes() -> Option<u64> {
        let (own, mut system) = (get_current_pid().ok()?, System::new());
        let what = ProcessRefreshKind::nothing().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, what);
        system.process(own).map(|process| process.memory())
    }

    /// Not known here.
    pub fn peak_bytes() -> Option<u64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_known_in_bytes() {
        let megabytes = |bytes: Option<u64>| bytes.map(|bytes| bytes >> 20);
        let (free, now) = (megabytes(free_bytes()), megabytes(resident_bytes()));
        assert!(free.is_some_and(|free| (1..1 << 24).contains(&free)), "{free:?} MB are free");
        assert!(now.is_some_and(|now| (1..1 << 24).contains(&now)), "{now:?} MB are in use");
        assert!(peak_bytes() >= resident_bytes() || cfg!(not(target_os = "linux")));
    }
}
