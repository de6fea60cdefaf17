//! A launch of several processes that this build has no engine for is one clear error.
#![cfg(not(any(feature = "mpi", feature = "nccl")))]

mod smoke_run;

use smoke_run::{Run, run};

/// What a process says that has these variables.
fn said(variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Run::new(&[]).train(&["--check"]);
    command.envs(variables.iter().copied());
    let (output, said) = run(&mut command);
    (output.status.code(), said)
}

#[test]
fn it_says_how_to_build() {
    let (status, text) = said(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.starts_with("error: mpirun started 2 processes, but this program was built for one"), "{text}");
    assert!(text.contains("--features mpi"), "{text}");
    let (status, text) = said(&[("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0")]);
    assert!(status == Some(2) && text.contains("torchrun started 4 processes"), "{text}");
    assert!(text.contains("--features cuda,nccl"), "{text}");
}

/// The others leave it to rank 0 to say it.
#[test]
fn it_is_said_once() {
    let (status, text) = said(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")]);
    assert_eq!((status, text.as_str()), (Some(2), ""));
}

#[test]
fn one_process_needs_no_engine() {
    let (status, text) = said(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")]);
    assert_eq!(status, Some(0), "{text}");
}
