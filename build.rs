//! With the feature `cuda`: compiles every `.cu` file below `src` with nvcc into one fat binary each.
use std::collections::BTreeSet;
use std::env::consts::EXE_SUFFIX;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::time::SystemTime;
use std::{env, fs};

const SOURCES: &str = "src";
/// What `.cu` files of several operations include.
const SHARED: &str = "src/kernels/cuda";
/// Machine code for the A100 (and its small siblings, which run it) and the H100; PTX for what comes after, which the
/// driver compiles when a kernel is first loaded.
const TARGETS: [&str; 3] =
    ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(fuzzing)");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(message) = compile_all() {
        println!("cargo::error={message}");
        exit(1);
    }
}

fn compile_all() -> Result<(), String> {
    let nvcc = find_nvcc()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    // The folder, for new files in it: any change below has the kernels looked at, and those compiled that it concerns.
    println!("cargo::rerun-if-changed={SOURCES}");
    let compiler = out.join("compiler");
    let is_same_compiler = fs::read(&compiler).is_ok_and(|path| path == nvcc.as_os_str().as_encoded_bytes());
    let (kernels, headers): (Vec<_>, Vec<_>) =
        sources(Path::new(SOURCES))?.into_iter().partition(|source| source.extension().is_some_and(|e| e == "cu"));
    let of_all = headers.iter().map(PathBuf::as_path).chain([Path::new("build.rs")]).map(modified).max().flatten();
    let mut names = BTreeSet::new();
    for source in kernels {
        let fatbin = out.join(source.file_stem().unwrap_or_default()).with_extension("fatbin");
        if !is_same_compiler || modified(&fatbin) <= of_all.max(modified(&source)) {
            compile(&nvcc, &source, &fatbin)?;
        }
        if !names.insert(fatbin) {
            return Err(format!("{}: another .cu file has this name", source.display()));
        }
    }
    fs::write(&compiler, nvcc.as_os_str().as_encoded_bytes()).map_err(|e| format!("{}: {e}", compiler.display()))
}

/// When a file was last changed; before all others, where there is none.
fn modified(file: &Path) -> Option<SystemTime> {
    file.metadata().and_then(|metadata| metadata.modified()).ok()
}

/// All `.cu` and `.cuh` files in a folder and below it.
fn sources(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error| format!("{}: {error}", folder.display());
    let mut found = vec![];
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh") {
            found.push(path);
        }
    }
    Ok(found)
}

/// nvcc of CUDA_HOME or CUDA_PATH, else the one on PATH.
fn find_nvcc() -> Result<PathBuf, String> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let folders = homes.map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    folders
        .chain(env::split_paths(&path))
        .map(|folder| folder.join(format!("nvcc{EXE_SUFFIX}")))
        .find(|nvcc| nvcc.is_file())
        .ok_or_else(|| {
            "the feature `cuda` needs nvcc: install the CUDA toolkit, and set CUDA_HOME or add its bin to PATH".into()
        })
}

fn compile(nvcc: &Path, source: &Path, fatbin: &Path) -> Result<(), String> {
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-O3", "-std=c++17", "--threads", "0", "-I", SHARED]);
    for target in TARGETS {
        command.args(["-gencode", target]);
    }
    command.arg(source).arg("-o").arg(fatbin);
    let output = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    Err(format!("nvcc could not compile {}; what it said is above", source.display()))
}
