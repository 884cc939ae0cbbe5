"""Which Debian package has a library or a program that models need (Debian 12, "bookworm")."""

from __future__ import annotations

import re

# Names without the number of the interface: that of the package on the right is Debian 12's.
_LIBRARIES = {
    "libgfortran.so.5": "libgfortran5",
    "libquadmath.so.0": "libquadmath0",
    "libgomp.so.1": "libgomp1",
    "libstdc++.so.6": "libstdc++6",
    "libgcc_s.so.1": "libgcc-s1",
    "libatomic.so.1": "libatomic1",
    "libnetcdf.so.19": "libnetcdf19",
    "libnetcdff.so.7": "libnetcdff7",
    "libhdf5_serial.so.103": "libhdf5-103-1",
    "libhdf5_serial_hl.so.100": "libhdf5-hl-100",
    "libblas.so.3": "libblas3",
    "liblapack.so.3": "liblapack3",
    "libopenblas.so.0": "libopenblas0",
    "libfftw3.so.3": "libfftw3-double3",
    "libmpi.so.40": "libopenmpi3",
    "libmpi_mpifh.so.40": "libopenmpi3",
    "libmetis.so.5": "libmetis5",
    "libproj.so.25": "libproj25",
    "libgdal.so.32": "libgdal32",
    "libgeos_c.so.1": "libgeos-c1v5",
    "libsqlite3.so.0": "libsqlite3-0",
    "libcurl.so.4": "libcurl4",
    "libcurl-gnutls.so.4": "libcurl3-gnutls",
    "libxml2.so.2": "libxml2",
    "libz.so.1": "zlib1g",
    "libbz2.so.1.0": "libbz2-1.0",
    "liblzma.so.5": "liblzma5",
    "libzstd.so.1": "libzstd1",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
    "libtinfo.so.6": "libtinfo6",
    "libreadline.so.8": "libreadline8",
    "libX11.so.6": "libx11-6",
    "libGL.so.1": "libgl1",
    "libtbb.so.12": "libtbb12",
    "libboost_system.so.1.74.0": "libboost-system1.74.0",
}
_ONEAPI = re.compile(r"lib(ifcoremt|ifcore|ifport|imf|intlc|irng|svml|iomp5|mkl_\w+)\.so.*")

_PROGRAMS = {
    "Rscript": "r-base-core", "R": "r-base-core", "octave": "octave", "octave-cli": "octave",
    "perl": "perl", "ruby": "ruby", "node": "nodejs", "java": "default-jre-headless",
    "gawk": "gawk", "awk": "mawk", "bc": "bc", "dc": "dc", "make": "make", "tclsh": "tcl",
    "gfortran": "gfortran", "gcc": "gcc", "g++": "g++", "time": "time", "zsh": "zsh",
    "ksh": "ksh", "tcsh": "tcsh", "csh": "csh", "fish": "fish", "sqlite3": "sqlite3",
    "gdal_translate": "gdal-bin", "gdalwarp": "gdal-bin", "ncks": "nco", "cdo": "cdo",
    "ncdump": "netcdf-bin", "ncgen": "netcdf-bin", "gnuplot": "gnuplot-nox", "unzip": "unzip",
    "zip": "zip", "curl": "curl", "wget": "wget", "rsync": "rsync", "git": "git", "file": "file",
    "mpirun": "openmpi-bin", "mpiexec": "openmpi-bin", "xmllint": "libxml2-utils", "jq": "jq",
    "ps": "procps", "bzip2": "bzip2", "xz": "xz-utils", "wine": "wine", "python2": "",
    "dos2unix": "dos2unix", "nice": "coreutils", "julia": "",
}  # fmt: skip


def find_library_package(library: str) -> str:
    """The Debian package that has a library; "" where it is not known."""
    return _LIBRARIES.get(library, "")


def find_program_package(program: str) -> str:
    """The Debian package that has a program; "" where it is not known."""
    return _PROGRAMS.get(program, "")


def is_of_intel(library: str) -> bool:
    """Is it one that comes with Intel's compilers, and not with Debian?"""
    return _ONEAPI.fullmatch(library) is not None
