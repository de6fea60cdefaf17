//! Renders a page in headless Chromium.
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names of the program, if `CHROMIUM` does not give its path.
const NAMES: [&str; 5] =
    ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];

/// The result of rendering a page.
pub struct Seen {
    /// The document after loading, as HTML.
    pub dom: String,
    /// Console messages, such as a refused resource or an invalid path.
    pub console: Vec<String>,
    /// Requested addresses other than files and `data:` URIs.
    pub requests: Vec<String>,
}

/// The machine's browser; if there is none, says so, or fails if `REQUIRE_CHROMIUM` is set.
pub fn find() -> Option<PathBuf> {
    let in_path = |name| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file: &PathBuf| file.is_file())
    };
    let found = std::env::var_os("CHROMIUM").map(PathBuf::from).or_else(|| NAMES.into_iter().find_map(in_path));
    if found.is_none() {
        assert!(std::env::var_os("REQUIRE_CHROMIUM").is_none(), "REQUIRE_CHROMIUM is set, and there is no Chromium");
        println!("skipped: no Chromium (CHROMIUM=path, or one of {NAMES:?} in PATH)");
    }
    found
}

/// Opens a page in a window of this width.
pub fn open(browser: &Path, page: &Path, width: u32) -> Seen {
    let folder = tempfile::tempdir().expect("folder");
    let net_log = folder.path().join("net.json");
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
        .args(["--disable-background-networking", "--no-first-run", "--enable-logging=stderr", "--dump-dom"])
        .arg("--virtual-time-budget=2000")
        .arg(format!("--window-size={width},900"))
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg(format!("--log-net-log={}", net_log.display()))
        .arg(page)
        .output()
        .expect("a browser that starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && dom.contains("</html>"), "{}: {said}", output.status);
    let console = said.lines().filter(|line| line.contains("CONSOLE")).map(String::from).collect();
    let log = std::fs::read_to_string(&net_log).expect("the log of the network");
    Seen { dom, console, requests: requests(&log) }
}

/// Every address in the log, except files and those within the page.
fn requests(log: &str) -> Vec<String> {
    let addresses = log.split("\"url\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    let outside = |address: &&str| !["file:", "data:", "about:"].iter().any(|scheme| address.starts_with(scheme));
    addresses.filter(outside).map(String::from).collect()
}
