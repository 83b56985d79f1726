"""Parquet files, by pyarrow."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from mengya.data.files import ByteSource, file_format
from mengya.data.readers.rows import Rejected, Row
from mengya.errors import UserError


def read_parquet(file: Path) -> Iterator[Row | Rejected]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{file}: reading Parquet needs pyarrow; pip install 'mengya[parquet]'") from error
    number = 0
    with tempfile.TemporaryFile() as unpacked:
        if file_format(file)[1]:  # Parquet is read from its end, so that it must lie unpacked somewhere
            source = ByteSource(file)
            unpacked.writelines(source)
        try:
            table = pyarrow.parquet.ParquetFile(unpacked if file_format(file)[1] else file, pre_buffer=False)
            for batch in table.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(str(file), number, value)
        except (pyarrow.ArrowException, OSError) as error:
            yield Rejected(str(file), number, "damaged Parquet file", str(error))
