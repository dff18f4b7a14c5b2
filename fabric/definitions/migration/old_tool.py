"""Facts about Baserock's old tool, which versions 0 to 6 of the format take for granted."""

from __future__ import annotations

#: The file DEFAULTS, with the build systems and split rules that were built into the old tool.
DEFAULTS = r"""# Baserock's tool had these built in, up to version 6 of the format.
#
# build-systems: a chunk names one, and replaces its command lists by its own.
# split-rules: the first rule with a pattern that matches takes a file of a chunk, or a chunk
#     artifact of a stratum.

build-systems:

  # Only the commands of the chunk itself.
  manual: {}

  # The same: the old tool only printed a word for each step.
  dummy: {}

  # configure, make, make install.  A source without `configure` has a script that makes it.
  autotools:
    configure-commands:
    - |
      export NOCONFIGURE=1
      for script in autogen autogen.sh bootstrap bootstrap.sh; do
        if [ -e "$script" ]; then
          "./$script"
          exit
        fi
      done
      [ -e configure ] || autoreconf --force --install --verbose
    - ./configure --prefix="$PREFIX" --sysconfdir=/etc --localstatedir=/var
    build-commands: &make
    - make
    install-commands: &make-install
    - make DESTDIR="$DESTDIR" install
    strip-commands: &strip
    # Programs and libraries are stripped; their symbols are kept in PREFIX/lib/debug.
    - |
      find "$DESTDIR" -type f \
        \( -perm -111 -o -name '*.so*' -o -name '*.cmxs' -o -name '*.node' \) \
        ! -path "$DESTDIR$PREFIX/lib/debug/*" -exec sh -ec '
        for file; do
          [ "$(head -c 4 "$file" | tr -cd ELF)" = ELF ] || continue
          symbols="$DESTDIR$PREFIX/lib/debug/${file##*/}"
          mkdir -p "${symbols%/*}"
          objcopy --only-keep-debug "$file" "$symbols"
          chmod 644 "$symbols"
          strip --strip-unneeded --remove-section=.comment --remove-section=.note "$file"
          objcopy --add-gnu-debuglink="$symbols" "$file"
        done' strip {} +

  # Python 2 with a setup.py.
  python-distutils:
    build-commands:
    - python setup.py build
    install-commands:
    - python setup.py install --prefix="$PREFIX" --root="$DESTDIR"
    strip-commands: *strip

  # Perl with a Makefile.PL: `make install` needs the whole path as PREFIX.
  cpan:
    configure-commands:
    - perl Makefile.PL PREFIX="$DESTDIR$PREFIX"
    build-commands: *make
    install-commands:
    - make install
    strip-commands: *strip

  # Perl with a Build.PL.
  module-build:
    configure-commands:
    - perl Build.PL --prefix "$DESTDIR$PREFIX"
    build-commands:
    - ./Build
    install-commands:
    - ./Build install
    strip-commands: *strip

  # CMake in the source tree.
  cmake:
    configure-commands:
    - cmake -DCMAKE_INSTALL_PREFIX=/usr .
    build-commands: *make
    install-commands: *make-install
    strip-commands: *strip

  # Qt.
  qmake:
    configure-commands:
    - qmake -makefile
    build-commands: *make
    install-commands:
    - make INSTALL_ROOT="$DESTDIR" install
    strip-commands: *strip

split-rules:

  chunk:
  - artifact: -bins
    include: ['(usr/)?s?bin/.*']
  - artifact: -libs
    include: ['(usr/)?lib(32|64)?/lib[^/]*\.so(\.\d+)*', '(usr/)libexec/.*']
  - artifact: -devel
    include:
    - (usr/)?include/.*
    - (usr/)?lib(32|64)?/lib.*\.(a|la)
    - (usr/)?(lib(32|64)?|share)/pkgconfig/.*\.pc
  - artifact: -doc
    include: ['(usr/)?share/(doc|man|info)/.*']
  - artifact: -locale
    include: ['(usr/)?share/(locale|i18n|zoneinfo)/.*']
  - artifact: -misc
    include: ['.*']

  stratum:
  - artifact: -devel
    include: ['.*-(devel|debug|doc)']
  - artifact: -runtime
    include: ['.*']
"""

#: Build system -> files at the top of a source that stand for it.  The first that fits counts.
_MARKS = {
    "autotools": (
        *("autogen", "autogen.sh", "configure", "configure.ac", "configure.in"),
        "configure.in.in",
    ),
    "python-distutils": ("setup.py",),
    "cpan": ("Makefile.PL",),
    "cmake": ("CMakeLists.txt",),
}


def detected(names: frozenset[str]) -> str:
    """The build system that the old tool detected from the files at the top of a source, or ""."""
    for system, marks in _MARKS.items():
        if not names.isdisjoint(marks):
            return system
    return "qmake" if any(name.endswith(".pro") for name in names) else ""
