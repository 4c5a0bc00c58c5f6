FrOm a As B
rUn x
CopY a b
eNv A=b
ExPoSe 1
