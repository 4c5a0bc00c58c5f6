# check=skip=StageNameCasing,FromAsCasing
from a AS B
