//! One file: streamed to `NAME.part` with bounded memory, resumed where an earlier attempt or process stopped,
//! checked, and renamed only when whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use sha2::{Digest, Sha256};
use tracing::{debug, info, warn};

use super::{
    FetchError, RemoteFile,
    client::{Answer, Client, Failure, Retries, refuse_errors},
    facts::FileFacts,
    files::length,
    source::redacted,
};
use crate::{exit::Chain, progress::Progress};

pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    pub(super) file: &'a RemoteFile,
    pub(super) folder: &'a Path,
    pub(super) progress: &'a Progress,
}

/// What has arrived so far.
struct Part {
    file: File,
    len: u64,
    hash: Sha256,
    /// ETag of the bytes so far: a different one means a different file.
    etag: Option<HeaderValue>,
}

impl Download<'_> {
    /// Returns the file's facts and the bytes that came over the network.
    pub(super) async fn run(&self) -> Result<(FileFacts, u64), FetchError> {
        let target = self.folder.join(&self.file.name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|err| disk(parent, err))?;
        }
        if let Some(facts) = self.already_whole(&target)? {
            return Ok((facts, 0));
        }
        let mut part = self.open_part()?;
        let mut fetched = 0;
        let mut retries = Retries::new(self.client.patience);
        loop {
            let before = part.len;
            match self.attempt(&mut part, &mut fetched).await {
                Ok(()) => break,
                Err(failure) => {
                    if part.len > before {
                        retries.gained();
                    }
                    retries.wait(failure).await?;
                }
            }
        }
        let sha256 = hex::encode(part.hash.finalize());
        if let Some(wanted) = self.file.sha256.as_ref().filter(|wanted| **wanted != sha256) {
            self.remove_part()?;
            let message =
                format!("`{}` has SHA-256 {sha256}, its source vouches for {wanted}", self.file.name);
            return Err(FetchError::Mismatch(message));
        }
        let path = self.part_path();
        part.file.sync_all().map_err(|err| disk(&path, err))?;
        fs::rename(&path, &target).map_err(|err| disk(&target, err))?;
        remove(&self.etag_path())?;
        sync_folder(&target)?;
        info!(file = %self.file.name, bytes = part.len, "file complete");
        Ok((FileFacts { name: self.file.name.clone(), size_bytes: part.len, sha256 }, fetched))
    }

    /// A file that an earlier process finished. Trusted only if somebody vouches for its digest: without that,
    /// a whole file of an older version looks the same.
    fn already_whole(&self, target: &Path) -> Result<Option<FileFacts>, FetchError> {
        let Some(wanted) = &self.file.sha256 else { return Ok(None) };
        let mut file = match File::open(target) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(disk(target, err)),
        };
        let mut hash = Sha256::new();
        let size_bytes = self.hash_file(&mut file, &mut hash).map_err(|err| disk(target, err))?;
        let sha256 = hex::encode(hash.finalize());
        if sha256 != *wanted {
            self.progress.take_back(size_bytes);
            return Ok(None);
        }
        debug!(file = %self.file.name, "already complete");
        Ok(Some(FileFacts { name: self.file.name.clone(), size_bytes, sha256 }))
    }

    /// Opens what an earlier attempt left, if it can be continued.
    fn open_part(&self) -> Result<Part, FetchError> {
        let path = self.part_path();
        let etag = fs::read(self.etag_path()).ok().and_then(|etag| HeaderValue::from_bytes(&etag).ok());
        let resumable = etag.is_some() || self.file.sha256.is_some();
        let opened = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut part =
            Part { file: opened.map_err(|err| disk(&path, err))?, len: 0, hash: Sha256::new(), etag };
        if !resumable {
            part.file.set_len(0).map_err(|err| disk(&path, err))?;
            return Ok(part);
        }
        part.len = self.hash_file(&mut part.file, &mut part.hash).map_err(|err| disk(&path, err))?;
        if part.len > 0 {
            info!(file = %self.file.name, bytes = part.len, "resuming");
        }
        Ok(part)
    }

    /// Hashes from the file's position to its end; the bytes count as progress.
    fn hash_file(&self, file: &mut File, hash: &mut Sha256) -> io::Result<u64> {
        let mut buffer = vec![0; 1 << 20];
        let mut len = 0;
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                return Ok(len);
            }
            hash.update(&buffer[..n]);
            len += n as u64;
            self.progress.add(n as u64);
        }
    }

    /// Asks for what is missing and takes what comes.
    async fn attempt(&self, part: &mut Part, fetched: &mut u64) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        // What is written must be what the source vouches for, not a transfer's encoding of it.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if part.len > 0 {
            headers.insert(
                header::RANGE,
                HeaderValue::from_maybe_shared(format!("bytes={}-", part.len))
                    .map_err(|_| FetchError::Failed("a range cannot be written".to_owned()))?,
            );
            if let Some(etag) = &part.etag {
                headers.insert(header::IF_RANGE, etag.clone());
            }
        }
        let answer = self.client.try_once(Method::GET, &self.file.url, &headers).await?;
        if answer.response.status() == StatusCode::RANGE_NOT_SATISFIABLE && part.len > 0 {
            if self.file.size_bytes == Some(part.len) {
                return Ok(());
            }
            self.restart(part)?;
            return Err(Failure::passing("what was left of an earlier attempt does not fit the source"));
        }
        let answer = refuse_errors(&self.file.url, answer)?;
        let total = self.begin(part, &answer)?;
        let mut response = answer.response;
        loop {
            let broken = |err: reqwest::Error| {
                let place = redacted(self.file.url.as_str());
                Failure::passing(format!("`{place}` broke off: {}", Chain(&err.without_url())))
            };
            let Some(piece) = response.chunk().await.map_err(broken)? else { break };
            // Small and sequential: the page cache takes it, and the runtime has nothing else to do.
            part.file.write_all(&piece).map_err(|err| disk(&self.part_path(), err))?;
            part.hash.update(&piece);
            part.len += piece.len() as u64;
            *fetched += piece.len() as u64;
            self.progress.add(piece.len() as u64);
            if total.is_some_and(|total| part.len > total) {
                self.restart(part)?;
                return Err(Failure::passing("the source sent more bytes than it announced"));
            }
        }
        match total {
            Some(total) if part.len < total => Err(Failure::passing(format!(
                "`{}` ended after {} of {total} bytes",
                redacted(self.file.url.as_str()),
                part.len
            ))),
            _ => Ok(()),
        }
    }

    /// Decides whether the answer continues the part or begins anew; returns the whole file's length.
    fn begin(&self, part: &mut Part, answer: &Answer) -> Result<Option<u64>, Failure> {
        let headers = answer.response.headers();
        let etag = headers.get(header::ETAG).filter(|etag| !etag.as_bytes().starts_with(b"W/")).cloned();
        let continues = answer.response.status() == StatusCode::PARTIAL_CONTENT;
        let total = if continues {
            let range =
                headers.get(header::CONTENT_RANGE).and_then(|range| parse_range(range.to_str().ok()?));
            // A source that ignores If-Range shows by its ETag that the file has changed.
            let same = part.etag.is_none() || etag.is_none() || part.etag == etag;
            match range {
                Some((start, total)) if start == part.len && same => total,
                _ => {
                    self.restart(part)?;
                    return Err(Failure::passing(
                        "the source answered with another range than was asked for",
                    ));
                }
            }
        } else {
            if part.len > 0 {
                warn!(file = %self.file.name, "the source cannot resume: beginning anew");
                self.restart(part)?;
            }
            length(headers)
        };
        if let (Some(total), Some(known)) = (total, self.file.size_bytes)
            && total != known
        {
            self.restart(part)?;
            let message = format!("`{}` has {total} bytes, its source announced {known}", self.file.name);
            return Err(Failure::passing(message));
        }
        if let Some(etag) = &etag {
            // Before the bytes that it stands for.
            write_whole(&self.etag_path(), etag.as_bytes())?;
        }
        part.etag = etag;
        Ok(total.or(self.file.size_bytes))
    }

    fn restart(&self, part: &mut Part) -> Result<(), FetchError> {
        part.file.set_len(0).map_err(|err| disk(&self.part_path(), err))?;
        self.progress.take_back(part.len);
        part.len = 0;
        part.hash = Sha256::new();
        part.etag = None;
        remove(&self.etag_path())
    }

    fn part_path(&self) -> PathBuf {
        self.folder.join(format!("{}.part", self.file.name))
    }

    fn etag_path(&self) -> PathBuf {
        self.folder.join(format!("{}.part.etag", self.file.name))
    }

    /// Forgets what has arrived.
    pub(super) fn remove_part(&self) -> Result<(), FetchError> {
        remove(&self.part_path())?;
        remove(&self.etag_path())
    }
}

/// `bytes 5-9/10` as start and total.
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (span, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = span.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

/// Writes a small file so that it is either there and whole, or not there.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), FetchError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|err| disk(path, err))?;
    sync_folder(path)
}

/// A rename lasts only once its folder is on disk.
fn sync_folder(of: &Path) -> Result<(), FetchError> {
    let Some(folder) = of.parent() else { return Ok(()) };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|err| disk(folder, err))
}

fn remove(path: &Path) -> Result<(), FetchError> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(disk(path, err)),
        _ => Ok(()),
    }
}

fn disk(path: &Path, source: io::Error) -> FetchError {
    FetchError::Disk { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(parse_range("bytes */10"), None);
        assert_eq!(parse_range("lines 1-2/3"), None);
    }

    #[test]
    fn a_full_disk_says_what_to_do() {
        let err = disk(Path::new("/models/m"), io::Error::from(io::ErrorKind::StorageFull));
        assert!(crate::Fatal::from(err).message.contains("raise its size"));
    }
}
