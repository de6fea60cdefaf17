//! What the launcher of several processes says about this one in its environment.
//!
//! `mpirun` of Open MPI sets `OMPI_COMM_WORLD_*`, that of MPICH and Intel MPI `PMI_*`, `torchrun` and `accelerate launch`
//! set `RANK`, `WORLD_SIZE` and `LOCAL_RANK`, and `srun` sets `SLURM_*`. A launcher that was itself started by `srun`
//! inherits Slurm's variables, which then speak of the launcher: they count where no others are set.
use super::error::{Error, Result};
use std::collections::BTreeMap;

/// Who started this process among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// `mpirun` or `mpiexec`.
    Mpi,
    /// `srun`.
    Slurm,
    /// `torchrun`, `accelerate launch`, or a script that sets their variables.
    Torch,
}

impl Launcher {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mpi => "mpirun",
            Self::Slurm => "srun",
            Self::Torch => "torchrun",
        }
    }
}

/// This process's place among those that were started together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Who started them.
    pub by: Launcher,
    /// This process, from 0.
    pub rank: usize,
    /// How many processes there are.
    pub size: usize,
    /// This process among those of its machine, from 0.
    pub local_rank: usize,
    /// How many processes its machine has.
    pub local_size: usize,
}

/// The variables of one launcher: rank, size, and those of its machine.
struct LauncherVariables {
    by: Launcher,
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
}

const LAUNCHERS: [LauncherVariables; 3] = [
    LauncherVariables {
        by: Launcher::Mpi,
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    LauncherVariables {
        by: Launcher::Mpi,
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_size: "MPI_LOCALNRANKS",
    },
    LauncherVariables {
        by: Launcher::Torch,
        rank: "RANK",
        size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_size: "LOCAL_WORLD_SIZE",
    },
];

/// `srun` sets the number of tasks of a step alone within the step: a batch script has the number of the job's.
const SLURM: LauncherVariables = LauncherVariables {
    by: Launcher::Slurm,
    rank: "SLURM_PROCID",
    size: "SLURM_STEP_NUM_TASKS",
    local_rank: "SLURM_LOCALID",
    local_size: "SLURM_STEP_TASKS_PER_NODE",
};

/// `torchrun` sets this in its workers; what else is set is then from around it.
const TORCH_WORKER: &str = "TORCHELASTIC_RUN_ID";

impl Launch {
    /// What this process's environment says; `None` where it was started alone.
    ///
    /// # Errors
    /// `Error::Usage` where variables are no numbers, incomplete, or contradict each other.
    pub fn from_environment() -> Result<Option<Self>> {
        let names = LAUNCHERS.iter().chain([&SLURM]).flat_map(|f| [f.rank, f.size, f.local_rank, f.local_size]);
        let values = names.chain([TORCH_WORKER]).filter_map(|name| Some((name, std::env::var_os(name)?)));
        Self::from_variables(&values.map(|(name, value)| (name, value.to_string_lossy().into_owned())).collect())
    }

    /// As [`Self::from_environment`], of these variables.
    ///
    /// # Errors
    /// The same.
    pub fn from_variables(values: &BTreeMap<&str, String>) -> Result<Option<Self>> {
        let mut found: Vec<(&LauncherVariables, Self)> = vec![];
        for family in &LAUNCHERS {
            found.extend(family.read(values)?.map(|launch| (family, launch)));
        }
        if values.contains_key(TORCH_WORKER) {
            found.retain(|(family, _)| family.by == Launcher::Torch);
        }
        if found.is_empty() {
            return SLURM.read(values);
        }
        let (first, launch) = &found[0];
        if let Some((other, second)) =
            found.iter().find(|(_, other)| (other.rank, other.size) != (launch.rank, launch.size))
        {
            return Err(Error::Usage(format!(
                "the launchers' variables disagree: {}={} of {}={}, but {}={} of {}={}; unset those that are not of the \
                 launcher of this program",
                first.rank, launch.rank, first.size, launch.size, other.rank, second.rank, other.size, second.size
            )));
        }
        Ok(Some(*launch))
    }

    /// Whether this process is the one that prints where no rank can be known: any of its variables has rank 0, or none
    /// is there.
    pub fn speaks() -> bool {
        let families = LAUNCHERS.iter().chain([&SLURM]);
        let ranks: Vec<String> = families.filter_map(|family| std::env::var(family.rank).ok()).collect();
        ranks.is_empty() || ranks.iter().any(|rank| rank == "0")
    }
}

impl LauncherVariables {
    fn read(&self, values: &BTreeMap<&str, String>) -> Result<Option<Launch>> {
        let number = |name: &str| {
            let wrong = |text: &String| Error::Usage(format!("{name}={text}: expected a number"));
            values.get(name).map(|text| text.trim().parse::<usize>().map_err(|_| wrong(text))).transpose()
        };
        let (rank, size) = match (number(self.rank)?, number(self.size)?) {
            (Some(rank), Some(size)) => (rank, size),
            // One process, by whatever is left of a launcher's variables. Slurm's batch scripts have a rank without a size.
            (None | Some(0), None) | (None, Some(1)) => return Ok(None),
            (Some(_), None) if self.by == Launcher::Slurm => return Ok(None),
            (Some(rank), None) => return Err(half(self.rank, rank, self.size)),
            (None, Some(size)) => return Err(half(self.size, size, self.rank)),
        };
        if rank >= size {
            return Err(Error::Usage(format!("{}={rank} of {}={size}: ranks begin at 0", self.rank, self.size)));
        }
        let local_rank = number(self.local_rank)?.unwrap_or(rank);
        let local_size = match self.by {
            // Such as `4(x2),3`; all but the last machine have as many, so the first number is the most.
            Launcher::Slurm => values
                .get(self.local_size)
                .and_then(|text| text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()),
            _ => number(self.local_size)?,
        };
        let local_size = local_size.unwrap_or(size).clamp(local_rank + 1, size.max(local_rank + 1));
        Ok(Some(Launch { by: self.by, rank, size, local_rank, local_size }))
    }
}

fn half(there: &str, value: usize, missing: &str) -> Error {
    Error::Usage(format!(
        "{there}={value} is set, but not {missing}: a launcher sets both; unset it, or start by mpirun, srun or torchrun"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[(&'static str, &str)]) -> Result<Option<Launch>> {
        Launch::from_variables(&values.iter().map(|(name, value)| (*name, value.to_string())).collect())
    }

    fn place(values: &[(&'static str, &str)]) -> Option<(Launcher, [usize; 4])> {
        let launch = read(values).expect("a place")?;
        Some((launch.by, [launch.rank, launch.size, launch.local_rank, launch.local_size]))
    }

    #[test]
    fn every_launcher_is_read() {
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "5"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
        ];
        assert_eq!(place(&open_mpi), Some((Launcher::Mpi, [5, 8, 1, 4])));
        assert_eq!(place(&[("PMI_RANK", "1"), ("PMI_SIZE", "2")]), Some((Launcher::Mpi, [1, 2, 1, 2])));
        let torch = [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")];
        assert_eq!(place(&torch), Some((Launcher::Torch, [3, 4, 1, 2])));
        let slurm = [
            ("SLURM_PROCID", "6"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_LOCALID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
        ];
        assert_eq!(place(&slurm), Some((Launcher::Slurm, [6, 8, 2, 4])));
        // `mpirun` starts a helper on every machine by `srun`, whose variables its processes inherit.
        assert_eq!(place(&[&slurm[..], &open_mpi].concat()), Some((Launcher::Mpi, [5, 8, 1, 4])));
        // `mpirun` of two `torchrun`s.
        let worker = [("TORCHELASTIC_RUN_ID", "none")];
        assert_eq!(place(&[&torch[..], &open_mpi, &worker].concat()), Some((Launcher::Torch, [3, 4, 1, 2])));
    }

    #[test]
    fn one_process_was_not_launched() {
        assert_eq!(place(&[]), None);
        // A batch script of a job of eight tasks.
        assert_eq!(place(&[("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0")]), None);
        assert_eq!(place(&[("WORLD_SIZE", "1")]), None);
    }

    #[test]
    fn contradictions_are_refused() {
        let refused = |values: &[(&'static str, &str)]| read(values).expect_err("refused").to_string();
        let mpi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];
        let said = refused(&[&mpi[..], &[("RANK", "0"), ("WORLD_SIZE", "2")]].concat());
        assert!(
            said.contains("OMPI_COMM_WORLD_RANK=1 of OMPI_COMM_WORLD_SIZE=2, but RANK=0 of WORLD_SIZE=2"),
            "{said}"
        );
        assert!(read(&[&mpi[..], &[("RANK", "1"), ("WORLD_SIZE", "2")]].concat()).is_ok());
        assert!(refused(&[("WORLD_SIZE", "2")]).contains("WORLD_SIZE=2 is set, but not RANK"));
        assert!(refused(&[("RANK", "1")]).contains("RANK=1 is set, but not WORLD_SIZE"));
        assert!(refused(&[("RANK", "x"), ("WORLD_SIZE", "2")]).contains("RANK=x: expected a number"));
        assert!(refused(&[("RANK", "2"), ("WORLD_SIZE", "2")]).contains("ranks begin at 0"));
    }
}
