//! The root of an image, staged as a folder: Debian's packages unpacked (never installed: no maintainer script runs),
//! cut to what a static set of binaries needs, and an unprivileged user.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::layer::{self, Kind, NONROOT};

/// Whatever the binary: identity, names of protocols, certificate authorities.
const ALWAYS: [&str; 3] = ["base-files", "ca-certificates", "netbase"];

/// Which package brings a shared library. A binary that needs another one is refused until it is listed here.
const LIBRARIES: [(&str, &str); 9] = [
    ("ld-linux", "libc6"),
    ("libc.so", "libc6"),
    ("libdl.so", "libc6"),
    ("libm.so", "libc6"),
    ("libpthread.so", "libc6"),
    ("libresolv.so", "libc6"),
    ("librt.so", "libc6"),
    ("libgcc_s.so", "libgcc-s1"),
    ("libstdc++.so", "libstdc++6"),
];

/// Left out of the packages: tools and data that need a shell, a terminal or a locale.
const CUT: [&str; 19] = [
    "boot",
    "etc/default",
    "etc/profile.d",
    "etc/skel",
    "home",
    "usr/games",
    "usr/src",
    "etc/dpkg",
    "etc/ld.so.conf.d",
    "etc/update-motd.d",
    "lib/systemd",
    "sbin",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/sbin",
    "usr/share/bug",
    "usr/share/gcc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/man",
];

/// Unpacks the base for these binaries to `out/stage/base`, from nothing each time.
pub(super) fn base(out: &Path, binaries: &[&Path], refresh: bool) -> Result<PathBuf> {
    let mut packages: BTreeSet<_> = ALWAYS.into_iter().collect();
    for binary in binaries {
        for library in libraries(binary)? {
            packages.insert(
                package_of(&library).with_context(|| format!("{} cannot be packed", binary.display()))?,
            );
        }
    }
    let debs = packages
        .iter()
        .map(|package| fetch(&out.join("debs"), package, refresh))
        .collect::<Result<Vec<_>>>()?;

    let root = out.join("stage/base");
    remove_tree(&root)?;
    fs::create_dir_all(&root)?;
    for deb in &debs {
        run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&root))?;
        record(&root, deb)?;
    }
    for cut in CUT {
        remove_tree(&root.join(cut))?;
    }
    keep_copyright_only(&root.join("usr/share/doc"))?;
    bundle_certificates(&root)?;
    add_user(&root)?;
    for folder in ["tmp", "var/tmp", "run", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(folder))?;
    }
    normalise(&root)?;
    for binary in binaries {
        for library in libraries(binary)? {
            let dirs =
                ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "lib64", "lib"];
            if !dirs.iter().any(|dir| root.join(dir).join(&library).symlink_metadata().is_ok()) {
                bail!("{} needs `{library}`, which the staged root lacks", binary.display());
            }
        }
    }
    Ok(root)
}

/// A copy of the base with the binary in `/usr/bin`: `folder/rootfs`, the build context of the Dockerfiles.
pub(super) fn with_binary(folder: &Path, base: &Path, binary: &Path) -> Result<PathBuf> {
    let root = folder.join("rootfs");
    remove_tree(&root)?;
    for (path, entry) in layer::scan(base)? {
        let to = root.join(&path);
        match &entry.kind {
            Kind::Folder => fs::create_dir_all(&to)?,
            Kind::Link(target) => {
                fs::create_dir_all(to.parent().unwrap_or(&root))?;
                symlink(target, &to)?;
            }
            Kind::File(from) => {
                fs::create_dir_all(to.parent().unwrap_or(&root))?;
                fs::copy(from, &to).with_context(|| format!("failed to copy {}", from.display()))?;
            }
        }
    }
    let bin = root.join("usr/bin");
    fs::create_dir_all(&bin)?;
    let name = binary.file_name().context("the binary has no file name")?;
    fs::copy(binary, bin.join(name)).with_context(|| format!("failed to copy {}", binary.display()))?;
    normalise(&root)?;
    Ok(root)
}

/// Names of the shared libraries that the loader would look for.
fn libraries(binary: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(binary).env("LC_ALL", "C").output().context("failed to run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("statically linked") || String::from_utf8_lossy(&output.stderr).contains("not a dynamic")
    {
        return Ok(Vec::new());
    }
    if !output.status.success() {
        bail!("ldd {} said: {}", binary.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    let mut names = Vec::new();
    for line in text.lines() {
        if line.contains("not found") {
            bail!("a library of {} is missing on this machine:{line}", binary.display());
        }
        // `libm.so.6 => /lib/…/libm.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`; the vdso is not a file.
        let first = line.split_whitespace().next().unwrap_or_default();
        let name = first.rsplit('/').next().unwrap_or_default();
        if !name.is_empty() && !name.starts_with("linux-vdso") {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

pub(super) fn package_of(library: &str) -> Result<&'static str> {
    LIBRARIES
        .iter()
        .find(|(prefix, _)| library.starts_with(prefix))
        .map(|(_, package)| *package)
        .with_context(|| {
            format!(
                "no Debian package is known for `{library}`; add it to LIBRARIES in xtask/src/image/stage.rs"
            )
        })
}

/// The package's file, kept in `folder` from then on, so that a rebuild needs no network and changes nothing.
fn fetch(folder: &Path, package: &str, refresh: bool) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let kept = find_deb(folder, package)?;
    if let Some(deb) = kept.as_ref().filter(|_| !refresh) {
        return Ok(deb.clone());
    }
    if let Some(old) = kept {
        fs::remove_file(old)?;
    }
    // As root, apt would hand the download to its own user, who cannot write here.
    let download = || {
        run(Command::new("apt-get")
            .args(["-q", "-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(folder))
    };
    if download().is_err() {
        // No list of packages yet, or one so old that its files are gone.
        run(Command::new("apt-get").args(["-q", "update"]))?;
        download()?;
    }
    find_deb(folder, package)?.with_context(|| format!("apt-get downloaded no file of `{package}`"))
}

fn find_deb(folder: &Path, package: &str) -> Result<Option<PathBuf>> {
    let prefix = format!("{package}_");
    for item in fs::read_dir(folder)? {
        let path = item?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with(&prefix) && name.ends_with(".deb") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Scanners read which packages an image holds from here, as in other images without a package manager.
fn record(root: &Path, deb: &Path) -> Result<()> {
    let control = run(Command::new("dpkg-deb").arg("-f").arg(deb))?;
    let package = control.lines().find_map(|line| line.strip_prefix("Package: "));
    let package = package.with_context(|| format!("{} has no name", deb.display()))?;
    let folder = root.join("var/lib/dpkg/status.d");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(package), control)?;
    Ok(())
}

/// The licences must travel with the files; change logs need not.
fn keep_copyright_only(doc: &Path) -> Result<()> {
    for package in fs::read_dir(doc)? {
        let package = package?.path();
        if !package.is_dir() || package.is_symlink() {
            continue;
        }
        for file in fs::read_dir(&package)? {
            let file = file?.path();
            if file.file_name().is_some_and(|name| name != "copyright") {
                remove_tree(&file)?;
            }
        }
    }
    Ok(())
}

/// What the package's install script would make: one file of all authorities.
fn bundle_certificates(root: &Path) -> Result<()> {
    let source = root.join("usr/share/ca-certificates");
    let mut bundle = Vec::new();
    for (path, entry) in layer::scan(&source)? {
        if let (true, Kind::File(file)) = (path.ends_with(".crt"), &entry.kind) {
            bundle.extend(fs::read(file)?);
            if bundle.last() != Some(&b'\n') {
                bundle.push(b'\n');
            }
        }
    }
    if bundle.is_empty() {
        bail!("the package `ca-certificates` held no certificate");
    }
    let certs = root.join("etc/ssl/certs");
    fs::create_dir_all(&certs)?;
    fs::write(certs.join("ca-certificates.crt"), bundle)?;
    remove_tree(&source)
}

fn add_user(root: &Path) -> Result<()> {
    let etc = root.join("etc");
    fs::write(
        etc.join("passwd"),
        format!(
            "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:{NONROOT}:{NONROOT}:nonroot:/nonexistent:/sbin/nologin\n"
        ),
    )?;
    fs::write(etc.join("group"), format!("root:x:0:\nnonroot:x:{NONROOT}:\n"))?;
    fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
    Ok(())
}

/// Gives the files on disk the modes that the layers have, for builders that copy the folder as it is.
fn normalise(root: &Path) -> Result<()> {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    for (path, entry) in layer::scan(root)? {
        if !matches!(entry.kind, Kind::Link(_)) {
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(entry.mode))?;
        }
    }
    Ok(())
}

/// Removes a file or folder that may not be there.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    let gone = match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    gone.with_context(|| format!("failed to remove {}", path.display()))
}

/// Runs to the end and returns what was printed; a failure says what the program said.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("failed to run `{program}`; is it installed?"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{program}` failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
