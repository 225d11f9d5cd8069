//! The password of a database server.

use std::path::Path;

use super::database_file::check_secret_file;
use super::error::StorageError;
use super::location::Place;

/// Returns the password from one of its sources in the settings: the environment variable `password_env`, or `password_file`,
/// which is relative to the data directory and accessible to its owner only. Without a source, returns the value of the
/// environment variable `default`, if it is set. Blocks.
///
/// # Errors
/// Both sources are set, or the source cannot be read.
pub fn password(
    password_env: Option<&str>,
    password_file: Option<&Path>,
    default: &str,
    place: &Place,
) -> Result<Option<String>, StorageError> {
    match (password_env, password_file) {
        (Some(_), Some(_)) => Err(StorageError::backend(
            "read the password",
            "both password_env and password_file are set; remove one of them",
        )),
        (Some(name), None) => std::env::var(name).map(Some).map_err(|_| {
            let cause = format!("the environment variable {name} from password_env is not set");
            StorageError::backend("read the password", cause)
        }),
        (None, Some(file)) => read_password(&place.input_file(file)).map(Some),
        (None, None) => Ok(std::env::var(default).ok()),
    }
}

fn read_password(path: &Path) -> Result<String, StorageError> {
    let action = || format!("read password_file {}", path.display());
    let read = check_secret_file(path).and_then(|()| std::fs::read_to_string(path));
    let text = read.map_err(|error| StorageError::backend(action(), error))?;
    let password = text.strip_suffix('\n').map_or(&text[..], |line| line.strip_suffix('\r').unwrap_or(line));
    if password.is_empty() {
        return Err(StorageError::backend(action(), "the file is empty"));
    }
    Ok(password.to_owned())
}
