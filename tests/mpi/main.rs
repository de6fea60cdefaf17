//! Several processes by MPI: they leave the bytes of one, share its work, and end together however one of them ends.
//! Without `mpirun` nothing is tested, and the tests say so (`REQUIRE_MPI=1` demands it).
#![cfg(all(feature = "mpi", target_os = "linux"))]

mod disk;
mod eval;
mod faults;
#[path = "../fixtures/generation/mod.rs"]
mod generation;
mod job;
#[path = "../outcome/mod.rs"]
mod outcome;
mod same_bytes;
mod shared_work;
#[path = "../smoke_run/mod.rs"]
mod smoke_run;

use job::{Job, has_mpirun};
use smoke_run::Run;

/// A mistake that every process makes is said once, and names no rank.
#[test]
fn an_error_of_all_is_said_once() {
    if !has_mpirun() {
        return;
    }
    let run = Run::new(&["train.stepz=3"]);
    let ended = Job::start(3, &run.train(&[])).end();
    assert_eq!(ended.errors(), ["error: --set train.stepz=3: unknown key train.stepz; the nearest is train.steps"]);
    assert_eq!(ended.status, Some(2));
    let mut command = run.train(&["--foo"]);
    let said = Job::start(3, command.arg("--bar")).end().said;
    assert_eq!(said.matches("unexpected argument").count(), 1, "{said}");
}

/// What one process alone finds has its rank before it.
#[test]
fn an_error_of_one_names_it() {
    if !has_mpirun() {
        return;
    }
    let run = Run::new(&["train.steps=3", "data.resolution=64"]);
    // Rank 1 starts where the config file is not.
    let elsewhere = "if [ $OMPI_COMM_WORLD_RANK = 1 ]; then cd /; fi; exec \"$@\"";
    let ended = Job::start_through(elsewhere, 3, &run.train(&[])).end();
    let errors = ended.errors();
    assert_eq!(errors.len(), 1, "{}", ended.said);
    assert!(errors[0].starts_with("error: rank 1 on ") && errors[0].contains("configs/smoke.toml"), "{errors:?}");
    assert!(!run.path("lora.safetensors").exists());
}

/// A command for one process does not run many times.
#[test]
fn what_is_not_shared_is_refused() {
    if !has_mpirun() {
        return;
    }
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.args(["config"]);
    let ended = Job::start(2, &command).end();
    assert_eq!(ended.errors().len(), 1, "{}", ended.said);
    assert!(ended.errors()[0].starts_with("error: 2 processes: this command is the work of one process"));
}

/// What `torchrun` starts tells each other by NCCL, on GPUs.
#[cfg(not(feature = "nccl"))]
#[test]
fn a_launcher_of_another_engine_is_named() {
    let mut command = Run::new(&[]).train(&[]);
    command.envs([("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")]);
    let (output, said) = smoke_run::run(&mut command);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let expected = "error: torchrun started 2 processes, which need NCCL to tell each other, but this program was built \
                    without: for GPUs build it by cargo build --release --features cuda,nccl; on CPUs start it by mpirun or \
                    srun\n";
    assert_eq!(said, expected);
}

/// A launcher of another MPI starts processes that each see themselves alone.
#[test]
fn a_launcher_of_another_mpi_is_named() {
    if !has_mpirun() {
        return;
    }
    let mut command = Run::new(&[]).train(&[]);
    command.env("PMI_RANK", "0").env("PMI_SIZE", "2");
    let (output, said) = smoke_run::run(&mut command);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("started process 0 of 2, but") && said.contains("says that it is 0 of 1"), "{said}");
}
