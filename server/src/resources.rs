//! What the container may use, from its cgroup: version 2 (`cpu.max`, `memory.max`) and version 1
//! (`cpu.cfs_quota_us`, `memory.limit_in_bytes`), the tightest of the group and its ancestors.

use std::{fs, num::NonZeroUsize, path::Path};

/// Limits that hold for this process; `None` = none found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Resources {
    /// CPUs, such as 1.5.
    pub(crate) cpus: Option<f64>,
    pub(crate) memory_bytes: Option<u64>,
}

/// Of `/proc/meminfo`.
fn total_bytes(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Above this a version 1 limit means "none" (it is `LONG_MAX` rounded to pages).
const NO_LIMIT_BYTES: u64 = 1 << 60;

impl Resources {
    /// A process without a limit has what the machine has.
    pub(crate) fn of_this_process() -> Self {
        let mut found = Self::read(Path::new("/sys/fs/cgroup"), Path::new("/proc/self/cgroup"));
        let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_bytes(&text));
        found.memory_bytes = tighter(found.memory_bytes, machine, u64::min);
        found
    }

    /// `root` as mounted at `/sys/fs/cgroup`, `membership` as in `/proc/self/cgroup`.
    fn read(root: &Path, membership: &Path) -> Self {
        let mut found = Self::default();
        let membership = fs::read_to_string(membership).unwrap_or_default();
        for line in membership.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            if controllers.is_empty() {
                found.tighten_along(root, path, v2);
            }
            for controller in controllers.split(',') {
                match controller {
                    // Mounted under the joint name on most hosts, under the short one on some.
                    "cpu" => {
                        for name in [controllers, "cpu"] {
                            found.tighten_along(&root.join(name), path, v1);
                        }
                    }
                    "memory" => found.tighten_along(&root.join("memory"), path, v1),
                    _ => {}
                }
            }
        }
        found
    }

    /// Reads the group at `path` and each ancestor up to `mount`. In a container the path may be the host's and
    /// not exist in its mount; then only the mount itself, which is the container's group, counts.
    fn tighten_along(&mut self, mount: &Path, path: &str, read: fn(&Path) -> Self) {
        let mut relative = Path::new(path.trim_start_matches('/'));
        if relative.components().any(|part| part.as_os_str() == "..") {
            relative = Path::new("");
        }
        for ancestor in relative.ancestors() {
            let limits = read(&mount.join(ancestor));
            self.cpus = tighter(self.cpus, limits.cpus, f64::min);
            self.memory_bytes = tighter(self.memory_bytes, limits.memory_bytes, u64::min);
        }
    }

    /// Threads for matrix products: whole CPUs of the quota, at least one, at most what the scheduler allows.
    pub(crate) fn threads(&self) -> NonZeroUsize {
        let allowed = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let quota = self.cpus.map_or(usize::MAX, |cpus| cpus.floor() as usize);
        NonZeroUsize::new(quota).map_or(NonZeroUsize::MIN, |quota| quota.min(allowed))
    }
}

fn tighter<T>(a: Option<T>, b: Option<T>, min: fn(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(min(a, b)),
        (a, b) => a.or(b),
    }
}

fn v2(group: &Path) -> Resources {
    let cpus = || {
        let text = fs::read_to_string(group.join("cpu.max")).ok()?;
        let (quota, period) = text.trim().split_once(' ')?;
        ratio(quota.parse().ok()?, period.parse().ok()?)
    };
    Resources { cpus: cpus(), memory_bytes: number(&group.join("memory.max")) }
}

fn v1(group: &Path) -> Resources {
    let cpus = || ratio(number(&group.join("cpu.cfs_quota_us"))?, number(&group.join("cpu.cfs_period_us"))?);
    let memory_bytes = number(&group.join("memory.limit_in_bytes")).filter(|limit| *limit < NO_LIMIT_BYTES);
    Resources { cpus: cpus(), memory_bytes }
}

/// `None` for words (`max`) and negative numbers (version 1's "no quota").
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn ratio(quota: u64, period: u64) -> Option<f64> {
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lays `files` (path, content) out and reads them with `membership`.
    fn check(membership: &str, files: &[(&str, &str)], cpus: Option<f64>, memory_bytes: Option<u64>) {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join("cgroup").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{content}\n")).unwrap();
        }
        let proc = dir.path().join("self-cgroup");
        fs::write(&proc, membership).unwrap();
        let read = Resources::read(&dir.path().join("cgroup"), &proc);
        assert_eq!(read, Resources { cpus, memory_bytes }, "for {membership:?}");
    }

    #[test]
    fn version_2_in_a_namespace_of_its_own() {
        check("0::/\n", &[("cpu.max", "150000 100000"), ("memory.max", "1048576")], Some(1.5), Some(1 << 20));
    }

    #[test]
    fn version_2_takes_the_tightest_ancestor() {
        let files = [
            ("kubepods/cpu.max", "400000 100000"),
            ("kubepods/memory.max", "max"),
            ("kubepods/pod1/cpu.max", "50000 100000"),
            ("kubepods/pod1/memory.max", "4096"),
            ("kubepods/pod1/c1/cpu.max", "max 100000"),
            ("kubepods/pod1/c1/memory.max", "8192"),
        ];
        check("0::/kubepods/pod1/c1\n", &files, Some(0.5), Some(4096));
    }

    #[test]
    fn version_1_with_joint_and_single_mounts() {
        let files = [
            ("cpu,cpuacct/pod/cpu.cfs_quota_us", "200000"),
            ("cpu,cpuacct/pod/cpu.cfs_period_us", "100000"),
            ("memory/pod/memory.limit_in_bytes", "65536"),
        ];
        check("5:cpu,cpuacct:/pod\n3:memory:/pod\n", &files, Some(2.0), Some(65536));
        let single = [("cpu/cpu.cfs_quota_us", "25000"), ("cpu/cpu.cfs_period_us", "100000")];
        check("5:cpu,cpuacct:/host/path/not/in/this/mount\n", &single, Some(0.25), None);
    }

    #[test]
    fn no_limit_is_none_and_nonsense_is_ignored() {
        let files = [
            ("cpu/cpu.cfs_quota_us", "-1"),
            ("cpu/cpu.cfs_period_us", "100000"),
            ("memory/memory.limit_in_bytes", "9223372036854771712"),
        ];
        check("2:cpu:/\n1:memory:/\n", &files, None, None);
        check("0::/\n", &[("cpu.max", "max 100000"), ("memory.max", "max")], None, None);
        check("0::/../../x\nnonsense\n", &[("cpu.max", "1 0")], None, None);
        check("", &[], None, None);
    }

    #[test]
    fn threads_are_whole_and_at_least_one() {
        let threads = |cpus| Resources { cpus, memory_bytes: None }.threads().get();
        assert_eq!(threads(Some(0.25)), 1);
        assert_eq!(threads(Some(1.9)), 1);
        assert_eq!(threads(None), std::thread::available_parallelism().unwrap().get());
    }

    #[test]
    fn the_machines_memory_is_read() {
        assert_eq!(total_bytes("MemTotal:       24643340 kB\nMemFree: 1 kB\n"), Some(24_643_340 << 10));
        assert_eq!(total_bytes("MemFree: 1 kB\n"), None);
        assert!(Resources::of_this_process().memory_bytes.is_some());
    }
}
