"""Packaging of sivit. Every value is read from settings.ini: change it there."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(root / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    keywords=settings["keywords"],
    url=settings["git_url"],
    license="Apache-2.0",
    packages=find_packages(include=["sivit", "sivit.*"]),
    include_package_data=True,
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require={"dev": settings["dev_requirements"].split()},
    entry_points={"nbdev": ["sivit=sivit._modidx:d"], "console_scripts": ["sivit=sivit.cli:main"]},
    zip_safe=False,
)
